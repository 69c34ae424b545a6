#!/usr/bin/env bash
# Fuzz the compiled coders, all at once, with the address and undefined-behaviour sanitizers:
#
#   tests/fuzz/run.sh SECONDS [FOLDER]
#
# FOLDER (build/fuzz) keeps the programs and the inputs found so far. A finding ends it with a status that is
# not 0 and leaves the input in FOLDER as crash-*; run the program on that file to see it again.
set -euo pipefail
seconds=${1:?usage: tests/fuzz/run.sh SECONDS [FOLDER]}
cd "$(dirname "$0")/../.."
folder=${2:-build/fuzz}
status=0
pids=()
for coder in huffman run_huffman rans context; do
  mkdir -p "$folder/$coder"
  # Without trace-cmp: the sanitizers' own comparisons would take two thirds of the time.
  clang -std=c11 -O2 -g -Wall -Wextra -Wconversion -Wshadow -Werror \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-coverage=trace-cmp -fno-sanitize-recover=all \
    -o "$folder/fuzz_$coder" "tests/fuzz/fuzz_$coder.c" "common/codec/kernel/$coder.c"
  "$folder/fuzz_$coder" -max_total_time="$seconds" -max_len=600 -len_control=0 -timeout=60 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=0 -artifact_prefix="$folder/" "$folder/$coder" "tests/fuzz/corpus/$coder" &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit $status
