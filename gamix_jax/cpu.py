"""What makes programs on a CPU fast."""

import ctypes
import platform

import jax


def compiler_options() -> dict[str, str] | None:
    """XLA's options for a program on a CPU, as `jax.jit` and `compile` take them; None elsewhere.

    Convolutions not by YNNPACK, whose kernel gradients take several times as long as
    those of Eigen, and which slows the forward pass of narrow ones (docs/performance.md).
    And not the pass that takes optimisation barriers out before operations are fused: those
    around convolutions (models/convolution.py) would do nothing, and what is computed again
    to save memory would be merged with what it was first computed as, and save none. jax
    0.10 to 0.12 have both options, and a version without them would refuse them.
    """
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


def keep_freed_memory() -> None:
    """Has this process keep the memory that its main thread frees (glibc), before JAX starts its own.

    A program's temporary memory on a CPU otherwise comes from the system anew at each
    call, and mapping its pages takes up to a quarter of a training step. The heaps of other
    threads give large pieces back, so programs of one CPU device run in the thread that
    calls them; those of several do not, and keep little. (One heap for all threads would
    keep it all, but they wait for it: steps took up to 1.7 times as long.) What devices
    there are is not known so early: with a GPU it is the host's memory that is kept, and
    never shrinks.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h: never trimmed, nothing by mmap
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, -1)
    libc.mallopt(mmap_max, 0)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
