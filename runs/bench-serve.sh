#!/bin/sh
# The server's table and plots in research/notes/2026-11-24-server-load.md: about two minutes on an idle machine of two cores or
# more. Arguments go to the command; figures and plots go to build/bench-serve.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec offramp bench serve --out build/bench-serve "$@"
