#!/bin/sh
# The table of head latencies in research/notes/2026-11-23-int8-head.md: about a minute.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m research.heads.bench_head "$@"
