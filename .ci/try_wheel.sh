#!/usr/bin/env bash
# A wheel as a user gets it: a fresh environment, elsewhere, and the demo with a real server and device.
#   .ci/try_wheel.sh dist/offramp-….whl [PYTHON]
set -euo pipefail
wheel=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Not in the checkout, whose offramp/ would be imported in the wheel's place.
cd "$folder"
"${2:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "$wheel[device,server]"
venv/bin/python - <<'PYTHON'
from pathlib import Path

import offramp
from offramp.common.codec.activation import coder_kind

assert "site-packages" in Path(offramp.__file__).parts, offramp.__file__
assert coder_kind() == "compiled", coder_kind()
PYTHON
venv/bin/edge-device --version
venv/bin/cloud-server --version
venv/bin/offramp demo --bundle "$root/models/digits-mobilenetv2-exit12" --images "$root/examples/digits"
