#!/usr/bin/env bash
# Runs one training on all hosts of a TPU pod slice, and again if it fails: it goes on from its last checkpoint.
#
#   [ATTEMPTS=10] [PYTHON=python3] docs/tpu_pod.sh NAME ZONE --config=configs/celeba.py --workdir=DIR
#
# NAME is that of the TPU VM; gamix_jax lies in ~/gamix_jax on every host, DIR is a folder
# that all hosts see, such as a Filestore, PYTHON theirs (3.11 or newer).
set -euo pipefail
name=$1 zone=$2
shift 2
command="cd ~/gamix_jax && ${PYTHON:-python3} -m gamix_jax.main --distributed$(printf ' %q' "$@")"
for attempt in $(seq "${ATTEMPTS:-10}"); do
  if gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"; then
    exit 0
  fi
  echo "Attempt $attempt of ${ATTEMPTS:-10} has failed." >&2
  sleep "${PAUSE_SECONDS:-30}" # the hosts that are left notice it within half a minute
done
exit 1
