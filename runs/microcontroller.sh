#!/bin/sh
# docs/results/microcontrollers.md: about a minute for 300 digits. Others: runs/microcontroller.py BUNDLE FOLDER.
set -eu
cd "$(dirname "$0")/.."
exec python3 runs/microcontroller.py models/digits-mobilenetv2-exit12 examples/digits "$@"
