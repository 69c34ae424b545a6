#!/bin/sh
# docs/results/field.md's figures: what audits and drift say of images that change, with real processes.
#   runs/field.sh FOLDER, TrashNet's photos as for runs/trashnet.sh; needs Prometheus (deploy/install-checkers.sh).
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data=${1:?expected the folder of TrashNet\'s Parquet files}
exec python -m tests.deploy.field "$data"
