#!/bin/sh
# Every trained figure and table of the paper on CIFAR-10, beside the paper's own values.
#
#   runs/cifar10.sh [--short] [--seconds S] [--data DIR] [offramp train's own flags]
#
# The schedule is the paper's: 300 epochs of base, 50 with each exit, 10 with each regulariser. --short takes
# 30, 10 and 4, with higher learning rates in the last two. Base models and exits are trained once; run it again
# after a break and it goes on from the last checkpoint. --seconds stops cleanly before S seconds are over, with
# exit status 130. --data DIR reads DIR/train.parquet and DIR/test.parquet instead of the Hugging Face hub.
# Bundles and records go to build/cifar10 (build/cifar10-short), tables and plots to its report folder.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/cifar10 seconds= data= short=
while [ $# -gt 0 ]; do
  case $1 in
    --short) short=1 out=build/cifar10-short ;;
    --seconds) seconds=$2; shift ;;
    --data) data=$2; shift ;;
    *) break ;;
  esac
  shift
done
if [ -n "$data" ]; then
  set -- --train-data "$data/train.parquet" --test-data "$data/test.parquet" "$@"
fi
if [ -n "$short" ]; then
  set -- --set train.base.epochs=30 train.exit.epochs=10 train.regularised.epochs=4 \
    train.exit.learning_rate=0.05 train.regularised.learning_rate=0.02 "$@"
fi
began=$(date +%s)
for model in mobilenetv2 resnet32 vgg19; do
  left=
  if [ -n "$seconds" ]; then
    left=$((seconds - $(date +%s) + began))
    if [ "$left" -le 0 ]; then exit 130; fi
  fi
  offramp train "runs/cifar10-$model.toml" --resume --out "$out" --checkpoints checkpoints/cifar10 \
    ${left:+--seconds "$left"} "$@"
done
offramp report all --runs "$out" --out "$out/report"
