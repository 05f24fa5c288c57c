#!/usr/bin/env bash
# Compress a splat scene into one file, and export it to what viewers open.
set -euo pipefail

dpq compress builtin:tiny-scene --preset balanced -o scene.dpq
dpq inspect scene.dpq --verify
dpq export scene.dpq -o again.ply
