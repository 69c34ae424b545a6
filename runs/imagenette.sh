#!/usr/bin/env bash
# The rate-trained split on Imagenette at 160x160, beside pictures, at equal accuracy.
#
#   runs/imagenette.sh [--data DIR] [offramp train's own flags]
#
# Trains all variants of runs/imagenette.toml, prints `python -m research.pareto`, and runs each rate-trained bundle
# through a real server and a real device on the test images. Training takes ten minutes on an H100; without a GPU,
# give --precision bfloat16 where the processor has it, and fewer epochs (--set train.base.epochs=41 …). Run it
# again after a break and it goes on. --data DIR reads DIR/train-*.parquet and DIR/val.parquet instead of the
# Hugging Face hub. Everything goes to build/imagenette.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/imagenette flags=() data=()
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=(--train-data "$2"/train-*.parquet --test-data "$2/val.parquet"); shift ;;
    *) flags+=("$1") ;;
  esac
  shift
done

offramp train runs/imagenette.toml --resume --out "$out" --checkpoints checkpoints/imagenette \
  --export-test "$out/test-images" "${data[@]}" "${flags[@]}"
python -m research.pareto --bundle "$out"/imagenette-rate* --whole "$out"/imagenette-{whole,webp} \
  --out "$out/report" "${data[@]}"
for bundle in "$out"/imagenette-rate*; do
  offramp demo --bundle "$bundle" --whole "$out/imagenette-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
runs/then-pictures.sh "$out" imagenette 1
