#!/bin/sh
# What the device adds in bytes and time (docs/experiments.md): two minutes on an otherwise idle machine.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec offramp bench device "$@"
