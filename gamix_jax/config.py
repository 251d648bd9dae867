"""Every key of a configuration, its meaning and its default."""

from typing import Any

import ml_collections


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
    # Of what they see, times kl_weight; at most 1 for a lower bound on KL(q(z) || p)
    objective.negentropy_weight = 1.0
    objective.collapse_weight = 0.1
    objective.collapse_target = 1.0  # variance at which the collapse penalty vanishes
    # Of a bonus, the entropy of each image's weights, so that no component dies
    objective.component_entropy_weight = 0.0

    config.adversarial = adversarial = ml_collections.ConfigDict()
    adversarial.loss = "hinge"  # hinge | bce | none
    adversarial.weight = 100.0  # of the term in the autoencoder's loss
    # Step from which it counts; the discriminator trains from step 0
    adversarial.start = 0
    # The discriminator judges as many draws of the prior as reconstructions: half of the
    # term's weight is each kind's, and the decoder decodes one image more for each
    adversarial.prior_samples = False

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.generator_learning_rate = 1e-4  # Adam, autoencoder
    optimizer.discriminator_learning_rate = 1e-4  # Adam, discriminator
    optimizer.beta1 = 0.5
    optimizer.beta2 = 0.999
    # Of train.steps, the last ones, in which both learning rates fall linearly to 0
    optimizer.decay_fraction = 0.0

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.batch_size = 128  # images a step over all devices
    train.ema_decay = 0.999  # of the weights that samples and evaluation use
    train.log_every = 50  # steps
    train.evaluate_every = 500  # steps; with pictures; also at the end
    train.checkpoint_every = 500  # steps; also at the end
    train.checkpoints_kept = 3
    # Steps that may be left out, for a loss or a gradient is not finite or the
    # autoencoder's gradient is 100 times the usual; one more ends the run
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
