#!/usr/bin/env bash
# The rate-trained split on Imagenette at 160x160, beside pictures, at equal accuracy.
#
#   runs/imagenette.sh [--short] [--data DIR] [offramp train's own flags]
#
# Trains all variants of runs/imagenette.toml, prints `offramp report pareto`, and runs each rate-trained bundle
# through a real server and a real device on the test images. --short is for two CPU cores that have bfloat16, some
# two hours and a half: 41 epochs of the base, most of them on smaller images, 3 of the code, then
# rate6 for 18 and rate3 for 14. Run it again after a break and it goes on. --data DIR reads DIR/train-*.parquet and
# DIR/val.parquet instead of the Hugging Face hub. Everything goes to build/imagenette (build/imagenette-short).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/imagenette flags=() data=() short=
while [ $# -gt 0 ]; do
  case $1 in
    --short)
      out=build/imagenette-short short=1
      sides=$(printf '80, %.0s' {1..26})$(printf '112, %.0s' {1..8})
      flags+=(--precision bfloat16 --set train.batch_size=64 train.base.epochs=41 train.base.learning_rate=0.08
        "train.base.sides=[${sides%, }]" train.code.epochs=3) ;;
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
  train --only whole webp
  train --set train.regularised.epochs=18 --only rate6
  train --set train.regularised.epochs=14 --only rate3
else
  train
fi
offramp report pareto --bundle "$out"/imagenette-rate* --whole "$out"/imagenette-{whole,webp} \
  --out "$out/report" "${data[@]}"
for bundle in "$out"/imagenette-rate*; do
  offramp demo --bundle "$bundle" --whole "$out/imagenette-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
