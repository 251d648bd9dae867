"""GAMIX-VAE on CelebA faces, 64x64 (Liu et al. 2015; aligned images, centre crop of 148).

    python -m gamix_jax.main --config=configs/celeba.py --workdir=runs/celeba

Variants, several with commas between: `folder` reads the images in --config.data.dir
instead of TFDS; `128` is for 128x128; `small` is a network for CPUs. The objective is
that of arXiv 2309.13160 with the total variance and hinge loss.

    python -m gamix_jax.main --config=configs/celeba.py:folder,small \
      --config.data.dir=DIR --workdir=runs/faces

docs/data.md says how to make the TFDS set of the files as given out, without TensorFlow.

Cost: `--mode=describe` counts it; the full network was trained for two steps only. `small`
on 11,000 faces, 6,000 steps of 16: 38 minutes on 2 CPU cores with other work on them.
What comes out: reconstructions of 1,000 held-out faces at 20.3 dB, mean absolute error
0.132 of [-1, 1]; all 128 units active; README shows samples.
"""

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
