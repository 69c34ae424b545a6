#!/bin/sh
# The table and plots of T_c over a link whose rate changes, in research/notes/2026-11-24-steering.md: about two minutes. It needs
# root and iproute2. Arguments go to the command; figures and plots go to build/bench-steering.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m research.links.steering --out build/bench-steering "$@"
