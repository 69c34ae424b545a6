#!/bin/sh
# Two parts against three over a radio and a wire that are really so slow, for docs/results/chain.md: some ten minutes, as root,
# on an otherwise idle machine, with the bundles of runs/three-parts.sh.
#   runs/bench-tiers.sh --images FOLDER, its test photos in class folders. Arguments go to the command.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
in=build/three-parts
exec python -m research.links.tiers "$in/two" "$in/three" "$in/three-joint" "$in/two@0.52" "$in/three@0.5,0" \
  "$in/three-joint@0.4,0.55" "$in/two@1" "$in/three@1,1" "$in/three-joint@1,1" "$@"
