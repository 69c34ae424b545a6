#!/usr/bin/env bash
# Points of `python -m research.pareto` that send pictures after activations, through a real server and a real device.
#
#   runs/then-pictures.sh OUT NAME DROP...
#
# OUT is the folder of the bundles, with report/pareto.json and test-images; NAME what their names begin with; DROP the
# points below the unsplit model, as in the table. What `offramp demo` says goes to OUT/report/then-pictures-DROP.txt.
set -euo pipefail
out=$1 name=$2
shift 2
for drop in "$@"; do
  point=$(sed -n "/\"drop\": $drop\.0,/,/}/s/.*\"point_pictures\": \"\(.*\)\".*/\1/p" "$out/report/pareto.json")
  if [[ $point =~ ^(.*),\ WebP\ ([0-9]+)(,\ model\ trained\ on\ WebP)?,\ T_c\ =\ ([0-9.]+),\ then\ ([0-9.]+)$ ]]; then
    whole=$out/$name-whole
    if [ -n "${BASH_REMATCH[3]}" ]; then whole=$out/$name-webp; fi
    offramp demo --bundle "$out/${BASH_REMATCH[1]}" --whole "$whole" --images "$out/test-images" \
      --threshold "${BASH_REMATCH[4]}" --picture-threshold "${BASH_REMATCH[5]}" \
      --picture-quality "${BASH_REMATCH[2]}" | tee "$out/report/then-pictures-$drop.txt"
  else
    echo "then-pictures.sh: $drop points below, no picture is sent: ${point:-nothing reaches it}"
  fi
done
