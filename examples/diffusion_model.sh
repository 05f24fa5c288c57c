#!/usr/bin/env bash
# Compress a diffusion model, and draw the same seeds before and after.
set -euo pipefail

dpq compress builtin:tiny-dit --bits 3 --no-data -o small-dit
dpq sample small-dit --baseline builtin:tiny-dit -o pictures --count 4 --columns 4 --sampling-steps 4
