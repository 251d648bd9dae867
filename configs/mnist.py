"""GAMIX-VAE on mnist."""

from gamix_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "mnist"
    config.data.size = 32
    config.data.channels = 1
    config.model.latent_size = 16
    config.model.widths = (64, 128, 128)
    config.train.steps = 50_000
    return config
