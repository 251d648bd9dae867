"""GAMIX-VAE on CelebA faces, 64x64 (Liu et al. 2015; aligned images, centre crop of 148).

    python -m gamix_jax.main --config=configs/celeba.py --workdir=runs/celeba

Variants, several with commas between: `folder` reads the images in --config.data.dir
instead of TFDS; `128` is for 128x128; `small` is a network for CPUs, with an objective of
its own. That of the others is arXiv 2309.13160's with the total variance and hinge loss.

    python -m gamix_jax.main --config=configs/celeba.py:folder,small \
      --config.data.dir=DIR --workdir=runs/faces

docs/data.md says how to make the TFDS set of the files as given out, without TensorFlow.

Cost: `--mode=describe` counts it; the full network was trained for two steps only. `small`
on 11,000 faces, 6,000 steps of 32: an hour of one CPU core with other work beside it. What
comes out, of one seed: reconstructions of 1,000 held-out faces at 21.4 dB, mean absolute
error 0.114 of [-1, 1], aggregate KL 0.51 nats (until commit 0d74bf0, of half as many images,
20.3, 0.132 and 1.83); all 128 units active; README shows samples. Batch normalisation did
better at 32x32, the full covariance at equal error, each by one seed; rates, memory and
weights were scaled from there by hand, and only this choice was run (docs/results.md).
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
        config.model.norm = "batch"
        config.objective.reconstruction_weight = 64_000.0
        config.objective.kl_weight = 25.0
        config.objective.covariance = "full"
        config.objective.moment_decay = 0.975
        config.objective.collapse_weight = 0.5
        config.adversarial.weight = 320.0
        config.adversarial.start = 1500
        config.optimizer.generator_learning_rate = 2e-3
        config.optimizer.discriminator_learning_rate = 2e-4
        config.optimizer.decay_fraction = 0.25
        config.train.batch_size = 32
        config.train.steps = 6000
        config.train.log_every = 100
        config.train.evaluate_every = 1000
        config.train.checkpoint_every = 1000
    return config
