#!/usr/bin/env bash
# Trains on several hosts of GPUs under Slurm, one process a GPU, and goes on after preemption, time limits and dead hosts.
#
#   [ATTEMPTS=10] sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 docs/slurm.sh --config=configs/celeba.py --workdir=DIR
#
# DIR must be a folder that all hosts see. What is given is passed to gamix_jax.main.
#SBATCH --job-name=gamix_jax
#SBATCH --requeue
# For reading images; a GPU can use more.
#SBATCH --cpus-per-task=8
#SBATCH --open-mode=append
# Two minutes before the time limit: the run saves, and is queued again.
#SBATCH --signal=B:TERM@120
set -uo pipefail
stopped=
# $! and not $run, which is not set yet where the signal comes as soon as the run is started
trap 'stopped=yes; kill -TERM "$!"' TERM
# Ends all processes as soon as one has failed; they would end by themselves within a minute.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 python -m gamix_jax.main --distributed "$@" &
run=$!
wait "$run"
status=$?
if [ -n "$stopped" ]; then # the trap broke off the wait
  wait "$run"
  status=$?
fi
# 0: trained to its end; 1: our sentence says what is to be mended first.
if [ -z "$stopped" ] && [ "$status" -le 1 ]; then
  exit "$status"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -lt "${ATTEMPTS:-10}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
