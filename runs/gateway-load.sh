#!/bin/sh
# The run of 1,000 devices through one gateway in docs/results/reach.md: two minutes. Arguments go to the program.
set -eu
cd "$(dirname "$0")/.."
exec python runs/gateway_load.py "$@"
