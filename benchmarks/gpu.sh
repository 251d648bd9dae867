#!/bin/bash
# The step on a GPU, beside its limits and beside PyTorch, in under 8 minutes: bash benchmarks/gpu.sh OUT
#
# Uses the first GPU and no data. Writes a log and JSON of each part to the folder OUT; a
# part that fails or takes too long is said so, and the next one begins. The twin wants
# PyTorch with CUDA beside JAX.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
visible=${CUDA_VISIBLE_DEVICES:-0}
export CUDA_VISIBLE_DEVICES=${visible%%,*} PYTHONPATH=.
export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR=$out/compiled

part() { # name, seconds, script and its flags
  local name=$1 seconds=$2
  shift 2
  echo "== $name: python benchmarks/$*"
  timeout "$seconds" python "benchmarks/$@" --json="$out/$name.json" 2>&1 | tee "$out/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || echo "== $name failed with exit code $status (124: longer than $seconds s)"
}

# One process for each dtype: what fails in one leaves the others.
part step_bfloat16 100 train_step.py --configs celeba celeba_hq --dtypes bfloat16 --rounds=3
part step_float32 60 train_step.py --configs celeba --dtypes float32 --rounds=3
part step_batches 60 train_step.py --configs celeba --dtypes bfloat16 --batches 256 --remat no yes --rounds=3
if python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  part twin_64 80 torch_twin.py --sizes=64 --batches=64 --dtypes=bfloat16 --rounds=3
  part twin_256 100 torch_twin.py --sizes=256 --batches=16 --dtypes=bfloat16 --rounds=3
else
  echo "== twin: left out, for there is no PyTorch that sees a GPU"
fi
part digits 50 train_step.py --configs digits --dtypes float32 bfloat16 --rounds=3
