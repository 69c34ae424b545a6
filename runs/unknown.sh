#!/bin/sh
# docs/results/unknown.md's tables: which score tells known inputs from foreign ones?
#   runs/unknown.sh FOLDER, with cifar10-jpeg, imagenette224, trashnet and spoken-digits as Parquet.
# Four minutes on two idle cores. What the heads make of the images is kept in build/unknown, by bundle.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of the data}
exec python -m research.unknown --data "$data" models/digits-mobilenetv2-exit12=digits \
  models/cifar10-mobilenetv2-exit12=cifar10 models/cifar10-mobilenetv2-rate=cifar10 \
  models/imagenette-mobilenetv2-rate=imagenette models/trashnet-efficientnet-lite0=trashnet
