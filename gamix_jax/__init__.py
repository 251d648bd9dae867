"""GAMIX-VAE in JAX: a VAE with a Gaussian-mixture posterior ("How to train your VAE", arXiv 2309.13160)."""


def __getattr__(name: str):
    # Imported where it is asked for: processes that only read images do without JAX.
    if name == "load":
        from gamix_jax.trained import load

        return load
    raise AttributeError(f"module 'gamix_jax' has no attribute {name!r}")
