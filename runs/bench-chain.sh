#!/bin/sh
# What a gateway adds to the latency of a frame that goes on, 64 devices: runs/bench-chain.sh --bundle DIR, of three parts,
# such as build/three-parts/three of runs/three-parts.sh. About a minute, on an idle machine. Arguments go to the command.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m research.links.hop "$@"
