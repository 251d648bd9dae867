"""Every key of a configuration, its meaning and its default; and the check that a configuration makes sense."""

import math
from typing import Any

import ml_collections

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


def default_config() -> ml_collections.ConfigDict:
    """The configuration that every file in configs/ starts from; locked, so that an unknown key is refused by name."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of parameters, noise and the order of the data

    config.data = _data_section()

    config.model = model = ml_collections.ConfigDict()
    model.latent_size = 16  # D
    model.components = 1  # K, Gaussians in each image's posterior
    model.weights = "learned"  # learned | uniform (fixed at 1/K), of the components
    # normal (N(0, I)) | mixture (C Gaussians) | vamp (of C pseudo-inputs, encoded every step)
    model.prior = "normal"
    model.prior_components = 100  # C, of a learned prior
    # Channels of each stage; each halves height and width
    model.widths = (64, 128)
    model.encoder_blocks = 2  # residual blocks a stage
    model.decoder_blocks = 1
    model.bottleneck = 64  # channels of the feature maps next to the latent vector
    model.norm = "batch"  # batch | group | affine
    model.input_norm = False  # of each image; removes its mean colour and contrast
    model.remat = False  # keep what enters a block, compute the rest again: less memory
    model.dtype = "float32"  # float32 | bfloat16, of the networks' computation

    config.discriminator = discriminator = ml_collections.ConfigDict()
    # Channels of each 3x3 convolution but the last
    discriminator.widths = (128, 128, 128, 64, 64)
    discriminator.strides = (2, 2, 2, 1, 1)
    discriminator.norm = "batch"  # batch | group | affine
    discriminator.norm_logits = False

    config.objective = objective = ml_collections.ConfigDict()
    # Of the mean absolute error, images in [-1, 1]
    objective.reconstruction_weight = 5000.0
    # aggregate (of q(z), over the global batch) | elbo (of each image; closed form for K = 1
    # and prior normal, else stratified) | siwae (importance-weighted, reconstruction within)
    objective.kl = "aggregate"
    objective.kl_weight = 1.0
    objective.kl_warmup = 0  # steps in which kl_weight rises from 0, for learned priors
    objective.samples = 1  # T, draws from each component; the decoder runs T K times
    # 0 decodes all T K draws at once; n: n at a time, twice: less memory, more time
    objective.component_chunk = 0
    # Aggregate only: total (a lower bound on KL(q(z) || p)) | between (author's code)
    objective.variance = "total"
    # Aggregate only: diagonal | full (correlations too; wants more images than D, or memory)
    objective.covariance = "diagonal"
    # Aggregate only: of the moments' memory, of N (1 + decay) / (1 - decay) images
    objective.moment_decay = 0.0
    # Aggregate, total only: Gaussians that follow q(z), to see what moments do not; 0: none
    objective.negentropy_components = 0
    objective.collapse_weight = 0.1
    objective.collapse_target = 1.0  # variance at which the collapse penalty vanishes
    # Of a bonus, the entropy of each image's weights, so that no component dies
    objective.component_entropy_weight = 0.0

    config.adversarial = adversarial = ml_collections.ConfigDict()
    adversarial.loss = "hinge"  # hinge | bce | none
    adversarial.weight = 100.0  # of the term in the autoencoder's loss
    adversarial.start = 0  # step from which it counts; the discriminator trains before
    adversarial.prior_samples = False  # are judged too, as many as reconstructions

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.generator_learning_rate = 1e-4  # Adam, autoencoder
    optimizer.discriminator_learning_rate = 1e-4  # Adam, discriminator
    optimizer.beta1 = 0.5
    optimizer.beta2 = 0.999

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.batch_size = 128  # images a step over all devices
    train.ema_decay = 0.999  # of the weights that samples and evaluation use
    train.log_every = 50  # steps
    train.evaluate_every = 500  # steps; with pictures; also at the end
    train.checkpoint_every = 500  # steps; also at the end
    train.checkpoints_kept = 3
    # Steps that may be left out, for a loss or a gradient is not finite; one more ends the run
    train.skip_nonfinite = 0
    return config.lock()


def _data_section() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # digits (scikit-learn's) | folder (of JPEG, PNG, WebP) | array (.npz or .npy) | tfds
    data.source = "digits"
    # The folder or the file; tfds: where data sets are stored ("" is TFDS's default),
    # or without data.name the folder of one
    data.dir = ""
    data.name = ""  # tfds: name of the data set, such as celeb_a
    data.train_split = "train"  # tfds: split, with slicing if wanted
    data.test_split = "test"  # tfds: "" holds out test_fraction of train_split
    data.test_fraction = 0.1  # held out where a source has no test split of its own
    data.size = 8  # height and width given to the model, pixels
    data.channels = 1  # 1 (grey) | 3 (RGB); images are converted
    # center (largest centred square) | celeba (centred 148x148 of 178x218) | celeba_hq
    # (square already) | none (squeezed to a square); then resized to size, bicubic and
    # antialiased
    data.crop = "center"
    data.flip = False  # mirror training images left to right, each with probability 1/2
    # Of a split's images, those that cannot be decoded and are left out; more end the run
    data.max_bad_fraction = 0.01
    # A set of up to this size, once resized, is kept in memory as it is first read
    data.memory_gib = 2.0
    # Processes that read a larger set for training: 0 is threads instead, as for a set in
    # memory; -1 is half as many as cores, at most 8, or threads where that is one
    data.workers = -1
    data.prefetch = 8  # batches that are read ahead, each by a thread
    return data


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Every value by the name that it is overridden by, such as "train.steps"."""
    values = {
        f"{section}.{key}": value
        for section in config
        if section != "seed"
        for key, value in config[section].items()
    }
    return {"seed": config.seed, **values}


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
