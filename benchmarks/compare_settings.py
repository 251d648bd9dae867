"""What compare.py runs: the networks, the images, the objectives and their weights."""

from typing import NamedTuple

import ml_collections
import record

from gamix_jax.config import default_config

# Of all runs: small networks, so that a run takes minutes of one core. With group
# normalisation at 1e-3 they learned too slowly (docs/results.md).
NETWORK = {
    "model.widths": (8, 16, 32),
    "model.encoder_blocks": 0,
    "model.bottleneck": 32,
    "model.norm": "batch",
    "discriminator.widths": (32, 32, 32),
    "discriminator.strides": (2, 2, 1),
    "adversarial.loss": "none",
    "adversarial.start": 0,
    "optimizer.generator_learning_rate": 3e-3,
    "train.batch_size": 64,
    "train.ema_decay": 0.995,
    "train.log_every": 100,
    "train.checkpoints_kept": 1,
}
# Of colour images. With 32 dimensions and smaller networks all samples were blurred alike.
COLOUR = {
    "model.widths": (16, 32, 64),
    "model.bottleneck": 64,
    "model.latent_size": 64,
    "train.batch_size": 32,
}
# A file in configs/, what else differs from it, and weights of the error that span a range
# of errors. A weight w is a Laplace likelihood of scale H W C / w, images in [-1, 1].
DATA = {
    "digits": ("digits", {"data.size": 8, "model.widths": (16, 32)}, (100, 200)),
    "mnist": ("mnist", {"data.source": "array"}, (600, 1200, 2400, 4800, 9600)),
    "cifar10": (
        "cifar10",
        COLOUR | {"data.source": "array"},
        (2000, 4000, 8000, 16000, 32000, 64000),
    ),
    "faces": (
        "celeba:folder",
        COLOUR | {"data.name": "", "data.size": 32},
        (2000, 4000, 8000, 16000, 32000, 64000),
    ),
    "faces64": (
        "celeba:folder",
        COLOUR | {"data.name": "", "model.widths": (16, 32, 64, 64)},
        (16000, 32000, 64000, 128000),
    ),
}
ELBO = {
    "objective.kl": "elbo",
    "objective.kl_weight": 1.0,
    "objective.collapse_weight": 0.0,
}
# The penalty at 1/2 is the part of an image's KL that its variances make, so that one
# weight of the error means about the same to all. 5 is then the author's KL beside his
# penalty.
AGGREGATE = {"objective.collapse_weight": 0.5, "objective.kl_weight": 5.0}
STRONG = {"objective.kl_weight": 25.0}
FULL = {"objective.covariance": "full"}
# Moments of few images are biased, the more the more dimensions. `run_config` has them
# remembered over as many images whatever the batch: 0.9 is for batches of 64.
IMAGES_REMEMBERED = 640
REMEMBERED = AGGREGATE | FULL | STRONG | {"objective.moment_decay": 0.9}
NEGENTROPY = {"objective.negentropy_components": 64}
WEAK = {"objective.negentropy_weight": 0.1}
# Its weight is ADVERSARIAL times that of the reconstruction: the author's 100 beside 5,000.
HINGE = {"adversarial.loss": "hinge", "optimizer.discriminator_learning_rate": 5e-4}
COLOUR_HINGE = {"optimizer.discriminator_learning_rate": 1e-3}
ADVERSARIAL = 1 / 50
SAMPLES = {"adversarial.prior_samples": True}
BASELINES = ("beta-VAE", "beta-VAE, PatchGAN")
OBJECTIVES = {
    BASELINES[0]: ELBO,
    "between, KL 5": AGGREGATE | {"objective.variance": "between"},
    "diagonal, KL 5": AGGREGATE,
    "diagonal, KL 25": AGGREGATE | STRONG,
    "full, KL 5": AGGREGATE | FULL,
    "full, KL 25": AGGREGATE | FULL | STRONG,
    "full, KL 25, memory": REMEMBERED,
    "full, KL 25, negentropy, memory": REMEMBERED | NEGENTROPY,
    "ELBO of K = 4": ELBO | {"model.components": 4},
    "VampPrior": ELBO | {"model.prior": "vamp", "objective.kl_warmup": 300},
    BASELINES[1]: ELBO | HINGE,
    "beta-VAE, PatchGAN of samples": ELBO | HINGE | SAMPLES,
    "full, KL 25, memory, PatchGAN": REMEMBERED | HINGE,
    "full, KL 25, negentropy, memory, PatchGAN": REMEMBERED | NEGENTROPY | HINGE,
    "full, KL 25, weak negentropy, memory, PatchGAN": REMEMBERED
    | NEGENTROPY
    | WEAK
    | HINGE,
    "full, KL 25, negentropy, memory, PatchGAN of samples": REMEMBERED
    | NEGENTROPY
    | HINGE
    | SAMPLES,
}


class Run(NamedTuple):
    """One training and its evaluation; `weight` is of the reconstruction."""

    objective: str
    weight: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        words = "".join(c if c.isalnum() else "_" for c in self.objective)
        return f"{words}-{self.weight}-{self.seed}"


def base_config(data: str, images: str, steps: int) -> ml_collections.ConfigDict:
    """The configuration that the runs on some images share."""
    name, changes, _ = DATA[data]
    config = record.load_config(name)
    default = default_config()  # configs/ has the winners
    config.objective.update(default.objective)
    config.adversarial.update(default.adversarial)
    config.optimizer.update(default.optimizer)
    config.update_from_flattened_dict(NETWORK | changes)
    config.data.dir = images
    config.train.steps = config.train.evaluate_every = steps
    config.train.checkpoint_every = max(1, steps // 4)
    return config


def run_config(base: ml_collections.ConfigDict, run: Run) -> ml_collections.ConfigDict:
    """The configuration of one run."""
    config = base.copy_and_resolve_references()
    config.seed = run.seed
    config.update_from_flattened_dict(
        OBJECTIVES[run.objective] | {"objective.reconstruction_weight": run.weight}
    )
    if config.objective.moment_decay:
        config.objective.moment_decay = 1 - config.train.batch_size / IMAGES_REMEMBERED
    if config.adversarial.prior_samples:
        # Batch normalisation is refused with them; so these differ from the others by the
        # normalisation too.
        config.model.norm = "group"
    if config.adversarial.loss != "none":
        config.adversarial.weight = ADVERSARIAL * run.weight
        if config.data.channels == 3:  # after the others have learned for a while
            config.adversarial.start = config.train.steps // 4
            config.update_from_flattened_dict(COLOUR_HINGE)
    return config
