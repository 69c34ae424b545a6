#!/bin/sh
# Regenerates models/digits-mobilenetv2-exit12 and the images in examples/digits: about six minutes on two cores.
# Run again after a break, it goes on from the last whole epoch.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
offramp train runs/digits.toml --resume \
  --out models/digits-mobilenetv2-exit12 \
  --export-test examples/digits
