#!/bin/sh
# The table of research/notes/2026-11-24-ray-cost.md: cloud-server and Ray Serve under the same load, on this machine. Three minutes.
# It needs: pip install '.[device,server,ray]'
set -eu
cd "$(dirname "$0")/.."
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
exec "${PYTHON:-python3}" runs/ray_load.py models/digits-mobilenetv2-exit12 examples/digits
