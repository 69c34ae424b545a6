#!/bin/sh
# TrashNet over three machines, and the table two against three parts of build/three-parts/table.md:
#   runs/three-parts.sh FOLDER, with train.parquet and test.parquet (image, label).
# The device's cut and code are those of runs/trashnet.sh, so that the two differ in what is behind them. Stages that
# build/trashnet-efficientnet-lite0 has are taken from there; without them add half an hour. The code of the second
# crossing and all codes together (--joint) are measured against the codes one after the other.
set -eu
cd "$(dirname "$0")/.."
data=${1:?expected the folder of TrashNet\'s Parquet files}
shift
out=build/three-parts
before=build/trashnet-efficientnet-lite0
flags="--side 160 --classes cardboard,glass,metal,paper,plastic,trash --drop 0 --epochs 10 --versions 5"
. runs/three-parts-split.sh
split two --bytes 80 --cut _blocks.7 "$@"
split three --bytes 80,40 --hop-costs 1,0.05 --cuts _blocks.7 _blocks.11 "$@"
split three-joint --bytes 80,40 --hop-costs 1,0.05 --joint 750 --cuts _blocks.7 _blocks.11 "$@"
python runs/three_parts.py "$out" --out "$out/table.md"
# Three real processes against the parts in one, input by input.
exec python runs/chain_processes.py "$out/three" examples/trashnet
