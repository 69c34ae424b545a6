#!/usr/bin/env bash
# The rate-trained split on CIFAR-10 beside pictures and beside the paper's scheme, at equal accuracy.
#
#   runs/cifar10-rate.sh [--short] [--data DIR] [offramp train's own flags]
#
# Trains all variants of runs/cifar10-rate.toml, prints `python -m research.pareto` (with the paper's scheme if
# runs/cifar10.sh has run before, with --short if this one has it), and runs each rate-trained bundle
# through a real server and a real device on the test images, at last two points of the table with pictures for what is
# still unsure. Training took some twenty minutes on an H200, without the stages after the joint one: less than three hours
# on two CPU cores. --short is for two CPU cores (runs/cifar10-rate-short.toml): two and a quarter hours with --precision
# bfloat16 where the CPU has it.
# Run it again after a break and it goes on. --data DIR reads DIR/train.parquet and DIR/test.parquet instead of the
# Hugging Face hub. Everything goes to build/cifar10-rate (build/cifar10-rate-short).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
recipe=cifar10-rate paper=build/cifar10 flags=() data=()
while [ $# -gt 0 ]; do
  case $1 in
    --short) recipe=cifar10-rate-short paper=build/cifar10-short ;;
    --data) data=(--train-data "$2/train.parquet" --test-data "$2/test.parquet"); shift ;;
    *) flags+=("$1") ;;
  esac
  shift
done
out=build/$recipe
offramp train "runs/$recipe.toml" --resume --out "$out" --checkpoints checkpoints/cifar10 \
  --export-test "$out/test-images" "${data[@]}" "${flags[@]}"
# The paper's scheme, at its 8 bits and at a coarser step, where runs/cifar10.sh has made it.
papers=()
for bundle in "$paper"/cifar10-mobilenetv2-exit12-entropy{0,1,2}{,-stepped}; do
  if [ -d "$bundle" ]; then papers+=("$bundle"); fi
done
python -m research.pareto --bundle "$out"/cifar10-rate-exit*-rate* --whole "$out"/cifar10-rate-{whole,webp} \
  ${papers[0]:+--paper "${papers[@]}"} --out "$out/report" "${data[@]}"
for bundle in "$out"/cifar10-rate-exit*-rate*; do
  offramp demo --bundle "$bundle" --whole "$out/cifar10-rate-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
runs/then-pictures.sh "$out" cifar10-rate 0 1
