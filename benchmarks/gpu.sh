#!/bin/bash
# The step on a GPU, beside its limits and beside PyTorch, in under 8 minutes: bash benchmarks/gpu.sh OUT
#
# Uses the first GPU and no data, and wants what `pip install .` brings; the twin PyTorch
# with CUDA too. Writes JSON of each part, after each configuration of it, and one log to the folder
# OUT; a part that fails or takes too long is said so, and the next one begins, the larger
# networks first; what 470 seconds leave no time for is left out. Start, input and inference are not timed: benchmarks of their own.
set -u
out=$(mkdir -p "${1:?names no folder for the results}" && cd "$1" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
trap 'kill "$running"; exit 1' INT TERM
exec > >(tee "$out/log") 2>&1
visible=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES=${visible%%,*} PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} TORCHINDUCTOR_CACHE_DIR=$cache/torch
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR=$cache/jax

part() { # name, seconds, script and its flags
  local name=$1 seconds=$2 left=$((470 - SECONDS))
  shift 2
  if [ "$left" -lt 10 ]; then
    echo "== $name: left out, for the time is up"
    failed=1
    return
  fi
  [ "$seconds" -lt "$left" ] || seconds=$left
  echo "== $name: python benchmarks/$*"
  timeout -k 5 "$seconds" python "benchmarks/$@" --json="$out/$name.json" &
  running=$!
  wait "$running"
  local status=$?
  [ "$status" -eq 0 ] && return
  failed=1
  echo "== $name failed with exit code $status (124: longer than $seconds s)"
}

running= failed=0
if ! timeout -k 5 60 python -c "import sys, jax; print(jax.devices()); sys.exit(jax.default_backend() != 'gpu')"; then
  echo "error: JAX sees no GPU here; pip install '.[cuda]' on a machine with one."
  exit 1
fi
# One process for each network: what fails in one leaves the others.
part step_256 90 train_step.py --configs celeba_hq --dtypes bfloat16 --rounds=3 --seconds=0.5
part step_64 55 train_step.py --configs celeba --dtypes bfloat16 float32 --rounds=3 --seconds=0.5
if timeout -k 5 60 python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  part twin_256 130 torch_twin.py --sizes=256 --batches=16 --dtypes=bfloat16 --rounds=3
  part twin_64 80 torch_twin.py --sizes=64 --batches=64 --dtypes=bfloat16 --rounds=3
else
  echo "== twin: left out, for there is no PyTorch that sees a GPU"
fi
part step_128_batch_256_remat 35 train_step.py --configs celeba:128 --dtypes bfloat16 --batches 256 --remat yes --rounds=3 --seconds=0.5
part step_128_batch_256 35 train_step.py --configs celeba:128 --dtypes bfloat16 --batches 256 --rounds=3 --seconds=0.5
part digits 30 train_step.py --configs digits --dtypes float32 bfloat16 --rounds=3 --seconds=0.5
exit $failed
