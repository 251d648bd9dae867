"""GAMIX-VAE on CelebA faces, 64x64 (Liu et al. 2015; aligned images, centre crop of 148, as the VAE literature does)."""

from gamix_jax.config import default_config

VARIANTS = ("folder", "128", "small")


def get_config(variant: str = ""):
    """The configuration of a comma-separated choice of VARIANTS."""
    words = set(variant.split(",")) - {""}
    if words - set(VARIANTS):
        raise ValueError(f"configs/celeba.py has the variants {VARIANTS}, not {variant!r}.")
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "celeb_a"
    config.data.crop = "celeba"
    config.data.size = 64
    config.data.channels = 3
    config.data.flip = True
    config.model.latent_size = 128
    config.model.widths = (128, 128, 128, 128)
    config.train.steps = 100_000
    if "folder" in words:
        config.data.source = "folder"
        config.data.crop = "center"
    if "128" in words:
        config.data.size = 128
        config.model.widths = (128, 128, 128, 128, 128)
    if "small" in words:
        config.model.encoder_blocks = 1
        config.model.widths = tuple(min(16 * 2**i, 64) for i in range(len(config.model.widths)))
        config.discriminator.widths = (32, 32, 32)
        config.discriminator.strides = (2, 2, 1)
        config.adversarial.weight = 50.0
        config.adversarial.start = 500
        config.optimizer.generator_learning_rate = 1e-3
        config.optimizer.discriminator_learning_rate = 3e-4
        config.train.batch_size = 32
        config.train.steps = 1600
        config.train.ema_decay = 0.995
        config.train.evaluate_every = 400
        config.train.checkpoint_every = 400
    return config
