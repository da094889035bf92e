#!/bin/bash
# A dump as a SLURM array, and the job that finishes the cache:
#
#   TASKS=16 SBATCH_OPTIONS="--gres=gpu:1 --cpus-per-task=8 --time=4:00:00" \
#       ./array.sh --teacher cnn-32 --weights teacher.safetensors --views 8 --transform affine:degrees=15 --out caches/big
#
# A task that fails is tried again by `scontrol requeue`, or by running this once more: finished parts are kept.
set -euo pipefail

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # in a task
    exec softlabels dump "$@" --parts "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi

out=""
previous=""
for argument in "$@"; do
    case "$argument" in --out=*) out="${argument#--out=}" ;; esac
    if [ "$previous" = "--out" ]; then out="$argument"; fi
    previous="$argument"
done
if [ -z "$out" ]; then
    echo "error: name the cache with --out" >&2
    exit 2
fi

# shellcheck disable=SC2086  # several options in one variable
array=$(sbatch --parsable --requeue --array="0-$((${TASKS:-8} - 1))" ${SBATCH_OPTIONS:-} "$0" "$@")
sbatch --dependency="afterok:$array" --wrap "softlabels cache finalize '$out'"
