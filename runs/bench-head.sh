#!/bin/sh
# The table of head latencies in docs/experiments.md: about a minute.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m research.heads.bench_head "$@"
