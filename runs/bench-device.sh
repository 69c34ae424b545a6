#!/bin/sh
# What the device adds in bytes and time (research/notes/2026-11-24-device-overhead.md): two minutes on an otherwise idle machine.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec offramp bench device "$@"
