#!/bin/bash
# A run on one machine with eight GPUs, in one process; it is started again until it has come to its end.
#   launch/eight_gpus.sh --experiment=dit_xl2_imagenet --data.dir=LATENTS --training.mesh=data:4,fsdp:2 --workdir=runs/dit
set -uo pipefail

for ((attempt = 1; attempt <= ${ATTEMPTS:-20}; attempt++)); do
  python -m experiments.train --training.hang_timeout=1800 "$@"
  status=$?
  # 0: finished.  1: a sentence that tells what to change.  130, 143: stopped by Ctrl-C or SIGTERM, and saved.
  case $status in 0 | 1 | 130 | 143) exit $status ;; esac
  echo "attempt $attempt ended with status $status; the same command goes on from the last checkpoint" >&2
  sleep "${PAUSE:-10}"
done
exit "$status"
