"""GAMIX-VAE on CelebA faces, 64x64 (Liu et al. 2015; aligned images, centre crop of 148)."""

from gamix_jax.config import default_config

VARIANTS = ("folder", "128", "small")


def get_config(variant: str = ""):
    """The configuration of a comma-separated choice of VARIANTS."""
    words = set(variant.split(",")) - {""}
    if words - set(VARIANTS):
        raise ValueError(
            f"configs/celeba.py has the variants {VARIANTS}, not {variant!r}."
        )
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "celeb_a"
    config.data.crop = "celeba"
    config.data.size = 64
    config.data.channels = 3
    config.data.flip = True
    config.model.latent_size = 128
    config.model.widths = (128, 128, 128, 128)
    config.model.norm = "group"
    config.discriminator.norm = "group"
    config.train.steps = 100_000
    if "folder" in words:
        config.data.source = "folder"
        config.data.crop = "center"
    if "128" in words:
        config.data.size = 128
        config.model.widths = (128, 128, 128, 128, 128)
    if "small" in words:
        stages = len(config.model.widths)
        config.model.widths = tuple(min(16 * 2**i, 128) for i in range(stages))
        config.model.encoder_blocks = 0
        config.discriminator.widths = (32, 32, 32)
        config.discriminator.strides = (2, 2, 1)
        config.adversarial.weight = 20.0
        config.adversarial.start = 2000
        config.optimizer.generator_learning_rate = 1e-3
        config.train.batch_size = 16
        config.train.steps = 6000
        config.train.log_every = 100
        config.train.evaluate_every = 1000
        config.train.checkpoint_every = 1000
    return config
