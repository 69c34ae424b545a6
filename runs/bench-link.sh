#!/bin/sh
# The link's tables and plots in research/notes/2026-11-24-narrow-links.md: about four minutes. It needs root and iproute2.
# Arguments go to the command; figures and plots go to build/bench-link.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m research.links.link --out build/bench-link "$@"
