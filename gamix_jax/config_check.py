"""The check that a configuration makes sense."""

import math

import ml_collections

from gamix_jax.config import flatten
from gamix_jax.errors import InputError

# Keys whose value is one of a few words.
CHOICES = {
    "data.source": ("digits", "folder", "array", "tfds"),
    "data.crop": ("center", "celeba", "celeba_hq", "none"),
    "data.channels": (1, 3),
    "model.norm": ("batch", "group", "affine"),
    "model.dtype": ("float32", "bfloat16"),
    "discriminator.norm": ("batch", "group", "affine"),
    "model.weights": ("learned", "uniform"),
    "model.prior": ("normal", "mixture", "vamp"),
    "objective.kl": ("aggregate", "elbo", "siwae"),
    "objective.variance": ("total", "between"),
    "objective.covariance": ("diagonal", "full"),
    "adversarial.loss": ("hinge", "bce", "none"),
}
POSITIVE = (
    "data.size",
    "data.prefetch",
    "model.latent_size",
    "model.components",
    "model.prior_components",
    "model.bottleneck",
    "objective.reconstruction_weight",
    "objective.samples",
    "objective.collapse_target",
    "optimizer.generator_learning_rate",
    "optimizer.discriminator_learning_rate",
    "train.steps",
    "train.batch_size",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.checkpoints_kept",
)
NOT_NEGATIVE = (
    "seed",
    "data.memory_gib",
    "model.encoder_blocks",
    "model.decoder_blocks",
    "objective.kl_weight",
    "objective.kl_warmup",
    "objective.collapse_weight",
    "objective.component_entropy_weight",
    "objective.component_chunk",
    "objective.negentropy_components",
    "objective.negentropy_weight",
    "adversarial.weight",
    "adversarial.start",
    "train.skip_nonfinite",
)
FRACTIONS = (
    "data.test_fraction",
    "data.max_bad_fraction",
    "objective.moment_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "train.ema_decay",
)
# What would be worked at for ever; other integers must be below 2**31.
BELOW = {
    "seed": 2**32,
    "data.prefetch": 2**10,
    "data.workers": 2**10,
    "model.encoder_blocks": 2**10,
    "model.decoder_blocks": 2**10,
    "train.batch_size": 2**20,
}


def check_config(config: ml_collections.ConfigDict, device_count: int) -> None:
    """Refuses a configuration that could not train, before any work is done.

    Args:
      config: as made from `default_config`.
      device_count: over all processes.

    Raises:
      InputError: names the key, its value and what it may be.
    """
    values = flatten(config)
    for key, allowed in CHOICES.items():
        if values[key] not in allowed:
            raise InputError(
                f"config.{key} is {values[key]!r}; it must be one of {', '.join(map(str, allowed))}."
            )
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"config.{key} is {value}; it must be a finite number.")
        below = BELOW.get(key, 2**31)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number >= below:
                raise InputError(f"config.{key} is {value}; it must be below {below}.")
    for keys, fits, rule in (
        (POSITIVE, lambda x: x > 0, "be positive"),
        (NOT_NEGATIVE, lambda x: x >= 0, "not be negative"),
        (FRACTIONS, lambda x: 0 <= x < 1, "be at least 0 and below 1"),
        (("data.workers",), lambda x: x >= -1, "be at least -1"),
        (("optimizer.decay_fraction",), lambda x: 0 <= x <= 1, "be from 0 to 1"),
    ):
        for key in keys:
            if not fits(values[key]):
                raise InputError(f"config.{key} is {values[key]}; it must {rule}.")
    for key in ("model.widths", "discriminator.widths", "discriminator.strides"):
        if not values[key] or not all(
            isinstance(x, int) and x > 0 for x in values[key]
        ):
            raise InputError(
                f"config.{key} is {values[key]}; it must be a tuple of positive integers."
            )
    if len(config.discriminator.widths) != len(config.discriminator.strides):
        raise InputError(
            "config.discriminator.widths and config.discriminator.strides must have the same length."
        )
    _check_objective(config)
    if config.adversarial.prior_samples:
        for key, wrong, reason, cure in (
            (
                "adversarial.loss",
                "none",
                "no discriminator judges them",
                "hinge or bce",
            ),
            (
                *("model.norm", "batch"),
                *("each kind of image has its own statistics", "group or affine"),
            ),
        ):
            if values[key] == wrong:
                raise InputError(
                    f"config.{key} is {wrong!r}, but config.adversarial.prior_samples is set: "
                    f"{reason}; set config.{key} to {cure}."
                )
    stages = len(config.model.widths)
    if config.data.size % 2**stages:
        raise InputError(
            f"config.data.size is {config.data.size}; it must be a multiple of {2**stages}: "
            f"each stage of config.model.widths, {tuple(config.model.widths)}, halves it."
        )
    if config.train.batch_size % device_count:
        raise InputError(
            f"config.train.batch_size is {config.train.batch_size}; it must be a multiple of the number of devices, "
            f"{device_count}."
        )


def _check_objective(config: ml_collections.ConfigDict) -> None:
    """Refuses what the parts of the objective cannot do together."""
    objective, model = config.objective, config.model
    if objective.kl == "aggregate" and model.prior != "normal":
        raise InputError(
            f'config.model.prior is {model.prior!r}, but config.objective.kl = "aggregate" is a distance to N(0, I); '
            "set config.objective.kl to elbo or siwae."
        )
    if objective.kl == "siwae" and objective.kl_weight == 0:
        raise InputError(
            'config.objective.kl_weight is 0; config.objective.kl = "siwae" divides the reconstruction weight by it; set it above 0.'
        )
    if objective.kl != "aggregate":
        for key, default in (
            ("variance", "total"),
            ("covariance", "diagonal"),
            ("moment_decay", 0.0),
            ("negentropy_components", 0),
            ("negentropy_weight", 1.0),
        ):
            if objective[key] != default:
                raise InputError(
                    f"config.objective.{key} is {objective[key]!r}; it is for config.objective.kl = aggregate only."
                )
    for key, plain in (("covariance", "diagonal"), ("negentropy_components", 0)):
        if objective[key] != plain and objective.variance == "between":
            raise InputError(
                f"config.objective.{key} is {objective[key]!r}; it needs config.objective.variance = total."
            )
    if objective.negentropy_weight != 1 and not objective.negentropy_components:
        raise InputError(
            f"config.objective.negentropy_weight is {objective.negentropy_weight}; it needs "
            "config.objective.negentropy_components above 0 to act on."
        )
    if objective.component_entropy_weight and (
        model.components == 1 or model.weights == "uniform"
    ):
        raise InputError(
            f"config.objective.component_entropy_weight is {objective.component_entropy_weight}; it needs weights to "
            "act on: config.model.components above 1 and config.model.weights = learned."
        )
    draws = objective.samples * model.components
    if objective.component_chunk and draws % objective.component_chunk:
        raise InputError(
            f"config.objective.component_chunk is {objective.component_chunk}; it must divide the {draws} draws of an "
            "image (config.objective.samples * config.model.components)."
        )
    if objective.component_chunk and model.norm == "batch":
        raise InputError(
            f"config.objective.component_chunk is {objective.component_chunk}, but with config.model.norm = batch each "
            "chunk would be normalised by its own statistics; set the norm to group or affine, or the chunk to 0."
        )
