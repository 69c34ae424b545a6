#!/bin/sh
# docs/results/spoken-digits.md's figures, from the Free Spoken Digit Dataset as Parquet:
#   runs/spoken-digits.sh FOLDER [flags of `offramp split`], with train.parquet and test.parquet (audio, label).
# Unpacks them to WAV files, splits runs/spoken_digits.py's network, and runs the pair through both programs. Some five minutes
# on two idle CPU cores. Needs the extras [split], [device], [server] and, for FLAC and Opus, [sound].
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of the recordings\' Parquet files}
shift
out=build/spoken-digits
[ -d $out/data/classes ] || python runs/spoken_digits.py "$data" $out/data
PYTHONPATH=runs offramp split spoken_digits:model --data $out/data/classes --out $out/pair --bytes 48 --drop 0 \
  --epochs 10 --versions 3 --steps 900 "$@"
cat $out/pair/report.md
offramp demo --bundle $out/pair --images $out/data/device
