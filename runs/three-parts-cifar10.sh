#!/bin/sh
# CIFAR-10 over three machines, and build/three-parts-cifar10/table.md as runs/three-parts.sh makes it:
#   runs/three-parts-cifar10.sh FOLDER, with train.parquet and test.parquet (img, label).
# EfficientNet-Lite0 with ImageNet's weights on pictures enlarged to 64×64, one epoch; forty minutes of one core.
set -eu
cd "$(dirname "$0")/.."
data=${1:?expected the folder of CIFAR-10\'s Parquet files}
shift
out=build/three-parts-cifar10
flags="--side 64 --classes airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck --drop 0.5 --epochs 1"
flags="$flags --versions 1 --image-column img --rival-minutes 0"
. runs/three-parts-split.sh
split two --bytes 60 --cut _blocks.7 "$@"
split three --bytes 60,30 --hop-costs 1,0.05 --cuts _blocks.7 _blocks.11 "$@"
exec python runs/three_parts.py "$out" --out "$out/table.md"
