#!/usr/bin/env bash
# Trains on several hosts of GPUs under Slurm, one process a GPU, and goes on after preemption.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 docs/slurm.sh --config=configs/celeba.py --workdir=DIR
#
# DIR must be a folder that all hosts see. What is given is passed to gamix_jax.main.
#SBATCH --job-name=gamix_jax
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the end of the time limit: the run saves and ends.
#SBATCH --signal=TERM@120
set -euo pipefail
# Ends all processes as soon as one has failed; they would end by themselves within a minute.
srun --kill-on-bad-exit=1 python -m gamix_jax.main --distributed "$@"
