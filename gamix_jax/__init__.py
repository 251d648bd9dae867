"""GAMIX-VAE in JAX: a VAE with a Gaussian-mixture posterior ("How to train your VAE", arXiv 2309.13160)."""
