#!/bin/sh
# Device, gateway and server under load, a fault at both hops at once, in every combination: what became of the
# images, and whether the pages of all three agree. About four minutes. --only stop+kill runs one combination.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m tests.faults.chain_pairs "$@"
