"""XLA's options on a CPU, and the memory that a process keeps."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gamix_jax.cpu import compiler_options
from gamix_jax.models.convolution import Conv

# Ten steps of 64 MiB of temporary memory and as much of results; prints how many pages they
# mapped. (A sum would be YNNPACK's, which takes memory in threads of its own.)
FAULTS = """
import resource, sys
from gamix_jax.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    return jax.lax.optimization_barrier(x.T * 2.0) * x

x = jnp.ones((4096, 4096))
for _ in range(60):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_convolutions_are_not_ynnpack_s():
    """That is XLA's default of jax 0.10 to 0.12, and slow."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    lowered = jax.jit(convolve).lower(
        jnp.ones((16, 64, 64, 32)), jnp.ones((3, 3, 32, 32))
    )
    assert "ynn_fusion" in lowered.compile().as_text()
    assert "ynn_fusion" not in lowered.compile(compiler_options()).as_text()


def test_convolutions_stand_between_barriers():
    """The result reads its images from behind one, the images' gradient its cotangent, the kernel's both; and they are there when XLA fuses operations."""

    def loss(params, x):
        return jnp.sum(jnp.square(Conv(4, (3, 3)).apply(params, jnp.sin(x))))

    x = jnp.ones((2, 8, 8, 4))
    params = Conv(4, (3, 3)).init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    equations = gradient.trace(params, x).jaxpr.eqns
    makers = {value: e.primitive.name for e in equations for value in e.outvars}
    read = [
        makers[value]
        for e in equations
        if e.primitive.name == "conv_general_dilated"
        for value in e.invars
        if value.aval.shape == x.shape
    ]
    assert read == ["optimization_barrier"] * 4
    compiled = gradient.lower(params, x).compile(compiler_options())
    assert "opt-barrier(" in compiled.as_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.slow
def test_freed_memory_is_kept():
    kept, fresh = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, word],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for word in ("keep", "fresh")
    )
    # 0 and 163,854 when written (10 x 64 MiB in pages of 4 KiB); other threads may map a few.
    assert kept < fresh / 20
