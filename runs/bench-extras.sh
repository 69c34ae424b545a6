#!/bin/sh
# What audits, samples and the live page take of a device: twenty minutes on an otherwise idle machine.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec offramp bench extras --rounds 30 "$@"
