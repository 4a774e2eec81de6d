#!/bin/bash
# A run on all machines of a TPU slice; JAX finds the others.  Needs the project and its extra tpu on each machine:
#   gcloud compute tpus tpu-vm ssh "$TPU" --worker=all --command='git clone URL genjax; pip install -e "genjax[tpu]"'
#   TPU=my-v5p-128 ZONE=us-east5-a launch/tpu_slice.sh --experiment=llama_7b --workdir=/mnt/runs/llama_7b \
#       --data.dir=/mnt/text --training.mesh=data:4,fsdp:16
# --workdir and --data.dir lie on a disk that all machines share.
set -euo pipefail

printf -v arguments '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "${TPU:?name of the TPU slice}" --zone="${ZONE:?its zone}" --worker=all \
  --command="cd genjax && exec python3 -m experiments.train --training.distributed --training.hang_timeout=1800 $arguments"
