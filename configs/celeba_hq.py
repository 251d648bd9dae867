"""GAMIX-VAE on CelebA-HQ, 256x256, latent size 512 (Karras et al. 2018).

    python -m gamix_jax.main --config=configs/celeba_hq.py --workdir=runs/celeba_hq

Variant `author`: network, norm, losses and weights of the published code of arXiv
2309.13160 (Keras), which also trained with Adam at 1e-4 on 24,000 images for 300 to 400
epochs. tests/test_author.py holds it to that code's numbers.

Cost: 550 GFLOP an image and step (`--mode=describe`); 450,000 steps of 16 are 300
epochs. Neither variant has been trained here yet.
"""

from gamix_jax.config import default_config


def get_config(variant: str = ""):
    config = default_config()
    config.data.source = "tfds"
    config.data.name = "celeb_a_hq/256"
    config.data.train_split = "train[:80%]"
    config.data.test_split = "train[80%:]"
    config.data.crop = "celeba_hq"
    config.data.size = 256
    config.data.channels = 3
    config.data.flip = True
    config.model.latent_size = 512
    config.model.widths = (128,) * 6
    config.model.norm = "group"
    config.discriminator.norm = "group"
    config.train.batch_size = 16
    config.train.steps = 450_000
    config.train.evaluate_every = 10_000
    config.train.checkpoint_every = 5_000
    if variant == "author":
        config.model.norm = "affine"
        config.model.input_norm = True
        config.discriminator.norm = "affine"
        config.discriminator.norm_logits = True
        config.objective.variance = "between"
        config.adversarial.loss = "bce"
    elif variant:
        raise ValueError(
            f'configs/celeba_hq.py has the variant "author", not {variant!r}.'
        )
    return config
