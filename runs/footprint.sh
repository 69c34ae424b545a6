#!/bin/sh
# The README's table of installed size, start-up time and memory of each extra: about three minutes.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for extra in device server train; do
  python3 -m venv --without-pip "$work/$extra"
  python3 -m pip --python "$work/$extra/bin/python" install --quiet --disable-pip-version-check ".[$extra]"
done
python3 runs/footprint.py "$work" models/digits-mobilenetv2-exit12 examples/digits
