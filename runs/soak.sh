#!/bin/sh
# Fifteen minutes of devices that come and go, 10,000 connects: does anything grow? Arguments go to the command.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec offramp bench soak "$@"
