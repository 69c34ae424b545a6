#!/bin/sh
# Every coder and its peers on one core: about three minutes. Arguments go to the command; --out DIR keeps
# the tables and plots.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
offramp bench codec "$@"
