#!/usr/bin/env bash
# Every trained figure and table of the paper on CIFAR-10, beside the paper's own values.
#
#   runs/cifar10.sh [--short] [--parallel] [--seconds S] [--data DIR] [offramp train's own flags]
#
# The schedule is the paper's: 300 epochs of base, 50 with each exit, 10 with each regulariser. --short is for two
# CPU cores: 9 epochs of MobileNetV2 and ResNet-32, the first 6 on smaller images, and 1 of VGG-19; 100 steps with
# each exit and 150 with each regulariser, higher learning rates, batches of 64; some two hours. Base models and
# exits are trained once; run it again after a break and it goes on from the last checkpoint. --seconds stops cleanly
# before S seconds are over, with exit status 130. --parallel trains several at a time, which a large GPU has room
# for. --data DIR reads DIR/train.parquet and DIR/test.parquet instead of the Hugging Face hub. Bundles and records go
# to build/cifar10 (build/cifar10-short), tables and plots to its report folder.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=build/cifar10 short='' parallel='' end='' flags=() data=()
while [ $# -gt 0 ]; do
  case $1 in
    --short)
      out=build/cifar10-short short=1
      flags+=(--set train.batch_size=64
        train.exit.epochs=1 train.exit.images=6400 train.exit.learning_rate=0.03
        train.regularised.epochs=1 train.regularised.images=9600 train.regularised.learning_rate=0.05) ;;
    --parallel) parallel=1 ;;
    --seconds) end=$(($(date +%s) + $2)); shift ;;
    --data) data=(--train-data "$2/train.parquet" --test-data "$2/test.parquet"); shift ;;
    *) flags+=("$1") ;;
  esac
  shift
done

# train MODEL [VARIANT...]
train() {
  local model=$1 own=()
  shift
  # A second --set adds to the first.
  if [ -n "$short" ] && [ "$model" = vgg19 ]; then
    own+=(--set train.base.epochs=1 train.base.learning_rate=0.01)
  elif [ -n "$short" ]; then
    own+=(--set train.base.epochs=9 train.base.learning_rate=0.05 'train.base.sides=[16, 16, 16, 24, 24, 24]')
  fi
  if [ $# -gt 0 ]; then own+=(--only "$@"); fi
  if [ -n "$end" ]; then
    local left=$((end - $(date +%s)))
    if [ $left -le 0 ]; then return 130; fi
    own+=(--seconds "$left")
  fi
  offramp train "runs/cifar10-$model.toml" --resume --out "$out" --checkpoints checkpoints/cifar10 \
    "${data[@]}" "${flags[@]}" "${own[@]}"
}

# Waits for all of these processes; fails as the last of them that fails.
all() {
  local status=0 process
  for process in "$@"; do wait "$process" || status=$?; done
  return $status
}

if [ -z "$parallel" ]; then
  for model in mobilenetv2 resnet32 vgg19; do train "$model"; done
else
  train resnet32 & others=($!)
  train vgg19 & others+=($!)
  # The base model first; then each exit by itself, because runs of one exit share its checkpoint.
  status=0
  train mobilenetv2 exit12 || status=$?
  if [ $status = 0 ]; then
    weights=(entropy0 entropy0.5 entropy1 entropy2 entropy2.5 entropy5)
    weights=("${weights[@]}" entropy10 "${weights[@]/%/-stepped}")
    train mobilenetv2 "${weights[@]/#/exit5-}" exit5 & others+=($!)
    train mobilenetv2 "${weights[@]/#/exit12-}" & others+=($!)
    train mobilenetv2 exit4-entropy{0,0.5,1,2.5,5} exit4-sparsity1e-{5,4,3,2} & others+=($!)
    train mobilenetv2 exit2 exit8 exit9 exit15 exit16 & others+=($!)
  fi
  all "${others[@]}" || status=$?
  if [ $status != 0 ]; then exit $status; fi
fi
python -m research.paper baselines --bundle "$out/cifar10-mobilenetv2-exit5-entropy0" "${data[@]}"
python -m research.paper all --runs "$out" --out "$out/report"
