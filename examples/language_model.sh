#!/usr/bin/env bash
# Compress a language model, measure it beside the original, and let it write.
set -euo pipefail

# It reads 64 windows of text by default; a small model needs fewer.
dpq compress builtin:tiny-llama --bits 4 --samples 16 -o small-llama
dpq eval small-llama --baseline builtin:tiny-llama --limit 2
dpq sample small-llama --prompt "def area(" --max-new-tokens 16
dpq inspect small-llama --verify
