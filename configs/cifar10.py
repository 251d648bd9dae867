"""GAMIX-VAE on CIFAR-10, 32x32 in colour (Krizhevsky 2009).

    python -m gamix_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The set is TFDS's, in --config.data.dir or its default place; docs/data.md says how to
make it of the files as given out, without TensorFlow.

Cost: `--mode=describe` counts it; trained for a few steps only here, on real images.
"""

from gamix_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.size = 32
    config.data.channels = 3
    config.model.latent_size = 128
    config.model.widths = (64, 128, 128)
    config.model.norm = "group"
    config.discriminator.norm = "group"
    config.train.steps = 50_000
    return config
