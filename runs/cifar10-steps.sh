#!/usr/bin/env bash
# The shipped CIFAR-10 bundle at other steps of its code, beside pictures, at equal accuracy: nothing is trained.
#
#   runs/cifar10-steps.sh [--data DIR]
#
# Makes the bundles from models/ with `offramp step`, prints `python -m research.pareto`, and runs each through a real
# server and a real device on the test images, at last two points of the table with pictures for what is still unsure.
# Some twenty minutes on two CPU cores. Run it again after a break and it goes on. --data DIR reads DIR/train.parquet and
# DIR/test.parquet instead of the Hugging Face hub. Everything goes to build/cifar10-steps.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/cifar10-steps data=()
if [ "${1:-}" = --data ]; then data=(--train-data "$2/train.parquet" --test-data "$2/test.parquet"); fi
shipped=$out/cifar10-rate-exit23-rate4-wide
mkdir -p "$out"
cp -rT models/cifar10-mobilenetv2-rate "$shipped"
cp -rT models/cifar10-mobilenetv2-whole "$out/cifar10-rate-whole"
images=(--export-test "$out/test-images")
for step in 0.7 0.8 0.9 1.1 1.2 1.3; do
  if [ ! -f "$shipped-step$step/manifest.json" ]; then
    rm -rf "$shipped-step$step"
    offramp step "$shipped" --step $step --out "$shipped-step$step" "${images[@]}" "${data[@]}"
  fi
  # They are written before the first step's bundle.
  images=()
done
python -m research.pareto --bundle "$shipped" "$shipped"-step* --whole "$out/cifar10-rate-whole" --out "$out/report" "${data[@]}"
for bundle in "$shipped" "$shipped"-step*; do
  offramp demo --bundle "$bundle" --whole "$out/cifar10-rate-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
runs/then-pictures.sh "$out" cifar10-rate 0 1
