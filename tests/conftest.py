"""Eight CPU devices, and no silent rank promotion, in every test."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# All but the second cut the time of compiling, most of the time of these tests, to a third.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # jax 0.12 knows it no more.
        *["--xla_cpu_use_fusion_emitters=false"] * version("jax").startswith("0.10."),
    ]
)

# One cache of compiled programs for this run: the processes of xdist, and those that
# tests start, inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.mkdtemp(prefix="gamix_jax_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """Folder of a run of a tiny network on digits, four steps; not to be changed."""
    from test_train import small_run

    from gamix_jax.train import train

    workdir = tmp_path_factory.mktemp("digits_run")
    train(small_run(), workdir)
    return workdir
