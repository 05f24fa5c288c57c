#!/usr/bin/env bash
# Keep options in a file; the command line wins, option by option. Run it beside recipe.yaml.
set -euo pipefail

dpq plan builtin:tiny-llama --no-data --recipe recipe.yaml
dpq compress builtin:tiny-llama --no-data --recipe recipe.yaml --bits 3 -o from-recipe
