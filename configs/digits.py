"""GAMIX-VAE on the 1,797 handwritten digits that scikit-learn ships (8x8, grey).

python -m gamix_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from gamix_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "digits"
    config.data.size = 8
    config.model.latent_size = 10
    config.model.widths = (32, 64)
    config.discriminator.widths = (32, 64)
    config.discriminator.strides = (2, 1)
    config.objective.reconstruction_weight = 200.0
    config.adversarial.weight = 0.5
    config.adversarial.start = 500
    config.optimizer.generator_learning_rate = 1e-3
    config.optimizer.discriminator_learning_rate = 3e-4
    config.train.steps = 2000
    config.train.ema_decay = 0.99
    return config
