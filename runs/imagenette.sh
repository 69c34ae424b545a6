#!/usr/bin/env bash
# The rate-trained split on Imagenette at 160x160, beside pictures, at equal accuracy.
#
#   runs/imagenette.sh [--short] [--data DIR] [offramp train's own flags]
#
# Trains all variants of runs/imagenette.toml, prints `offramp report pareto`, and runs each rate-trained bundle
# through a real server and a real device on the test images. --short is for two CPU cores, some four hours: 4 epochs
# of each last stage, 10 of rate4-tail, 14 of rate6-crop. Run it again after a break and it goes on. --data DIR reads
# DIR/train-*.parquet and DIR/val.parquet instead of the Hugging Face hub. Everything goes to build/imagenette
# (build/imagenette-short).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/imagenette flags=() data=() short=
while [ $# -gt 0 ]; do
  case $1 in
    --short)
      out=build/imagenette-short short=1
      flags+=(--set train.base.epochs=26 'train.base.sides=[80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 112, 112, 112, 112, 112, 112, 112, 112]'
        train.code.epochs=2) ;;
    --data) data=(--train-data "$2"/train-*.parquet --test-data "$2/val.parquet"); shift ;;
    *) flags+=("$1") ;;
  esac
  shift
done

train() {
  offramp train runs/imagenette.toml --resume --out "$out" --checkpoints checkpoints/imagenette \
    --export-test "$out/test-images" "${data[@]}" "${flags[@]}" "$@"
}

if [ -n "$short" ]; then
  train --set train.regularised.epochs=4 --only whole webp rate4
  train --set train.regularised.epochs=10 --only rate4-tail
  train --set train.regularised.epochs=14 --only rate6-crop
else
  train
fi
offramp report pareto --bundle "$out"/imagenette-rate* --whole "$out"/imagenette-{whole,webp} \
  --out "$out/report" "${data[@]}"
for bundle in "$out"/imagenette-rate*; do
  offramp demo --bundle "$bundle" --whole "$out/imagenette-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
