#!/usr/bin/env bash
# The rate-trained split on CIFAR-10 beside pictures and beside the paper's scheme, at equal accuracy.
#
#   runs/cifar10-rate.sh [--short] [--data DIR] [offramp train's own flags]
#
# Trains all variants of runs/cifar10-rate.toml, prints `offramp report pareto` (with the paper's scheme if
# runs/cifar10.sh has run before, with --short if this one has it), and runs each rate-trained bundle
# through a real server and a real device on the test images. --short is for two CPU cores: 12 epochs of the base,
# most of them on smaller images, 1 of the code and 5 of the last stage, batches of 64; some two hours with
# --precision bfloat16 where the CPU has it. Run it again after a break and it goes on. --data DIR reads
# DIR/train.parquet and DIR/test.parquet instead of the Hugging Face hub. Everything goes to build/cifar10-rate
# (build/cifar10-rate-short).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/cifar10-rate paper=build/cifar10 flags=() data=()
while [ $# -gt 0 ]; do
  case $1 in
    --short)
      out=build/cifar10-rate-short paper=build/cifar10-short
      flags+=(--set train.batch_size=64 train.base.epochs=12 train.base.learning_rate=0.05
        'train.base.sides=[16, 16, 16, 24, 24, 24, 24]' train.code.epochs=1 train.regularised.epochs=5) ;;
    --data) data=(--train-data "$2/train.parquet" --test-data "$2/test.parquet"); shift ;;
    *) flags+=("$1") ;;
  esac
  shift
done
offramp train runs/cifar10-rate.toml --resume --out "$out" --checkpoints checkpoints/cifar10 \
  --export-test "$out/test-images" "${data[@]}" "${flags[@]}"
# The paper's scheme, at its 8 bits and at a coarser step, where runs/cifar10.sh has made it.
papers=()
for bundle in "$paper"/cifar10-mobilenetv2-exit12-entropy{0,1,2}{,-stepped}; do
  if [ -d "$bundle" ]; then papers+=("$bundle"); fi
done
offramp report pareto --bundle "$out"/cifar10-rate-exit*-rate* --whole "$out"/cifar10-rate-{whole,webp} \
  ${papers[0]:+--paper "${papers[@]}"} --out "$out/report" "${data[@]}"
for bundle in "$out"/cifar10-rate-exit*-rate*; do
  offramp demo --bundle "$bundle" --whole "$out/cifar10-rate-whole" --images "$out/test-images" | tee "$out/report/$(basename "$bundle").txt"
done
