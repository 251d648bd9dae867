"""The configurations in configs/ and the check of values."""

import importlib.util
from pathlib import Path

import pytest

from gamix_jax.config import default_config
from gamix_jax.config_check import check_config
from gamix_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
VARIANTS = {"celeba": ["folder", "128", "folder,128,small"], "celeba_hq": ["author"]}


def get_config(path, *variant):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def assert_refused(fields, key, sentence):
    config = default_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=sentence) as error:
        check_config(config, device_count=8)
    assert f"config.{key}" in str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_and_variant_makes_sense(path):
    for variant in ([], *([name] for name in VARIANTS.get(path.stem, []))):
        config = get_config(path, *variant)
        if config.data.source == "folder":
            config.data.dir = "images"
        check_config(config, device_count=8)
        assert config.is_locked
    if path.stem in VARIANTS:
        with pytest.raises(ValueError, match="nonsense"):
            get_config(path, "nonsense")


def test_the_author_s_objective():
    """5000 / 1 / 0.1 / 100, Adam 1e-4 with beta1 0.5, "between", BCE, norm "affine" (DESIGN.md sections 1 and 2)."""
    config = get_config(Path(CONFIGS[0]).parent / "celeba_hq.py", "author")
    objective, adversarial, optimizer = (
        config.objective,
        config.adversarial,
        config.optimizer,
    )
    assert (
        objective.reconstruction_weight,
        objective.kl_weight,
        objective.collapse_weight,
        adversarial.weight,
    ) == (
        5000,
        1,
        0.1,
        100,
    )
    assert (
        optimizer.generator_learning_rate,
        optimizer.discriminator_learning_rate,
        optimizer.beta1,
    ) == (
        1e-4,
        1e-4,
        0.5,
    )
    assert (objective.variance, adversarial.loss, adversarial.start) == (
        "between",
        "bce",
        0,
    )
    assert (
        config.model.norm,
        config.discriminator.norm,
        config.model.latent_size,
        config.data.size,
    ) == (
        "affine",
        "affine",
        512,
        256,
    )


def test_unknown_and_mistyped_keys_are_refused_by_name():
    config = default_config()
    with pytest.raises(AttributeError, match="stepz"):
        config.train.stepz = 3
    with pytest.raises(TypeError, match="steps"):
        config.train.steps = "many"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data.source", "disk", "one of digits, folder, array, tfds"),
        ("data.crop", "left", "one of center, celeba, celeba_hq, none"),
        ("data.workers", -2, "at least -1"),
        ("data.prefetch", 0, "must be positive"),
        ("data.memory_gib", -0.5, "must not be negative"),
        ("data.channels", 2, "one of 1, 3"),
        ("data.size", 10, "multiple of 4"),
        ("data.size", 0, "must be positive"),
        ("data.test_fraction", 1.0, "below 1"),
        ("model.norm", "layer", "one of batch, group, affine"),
        ("model.dtype", "float16", "one of float32, bfloat16"),
        ("model.widths", (), "tuple of positive integers"),
        ("model.widths", (8, -1), "tuple of positive integers"),
        ("model.components", 0, "must be positive"),
        ("model.encoder_blocks", -1, "must not be negative"),
        ("discriminator.strides", (2,), "same length"),
        ("objective.kl", "both", "one of aggregate, elbo, siwae"),
        ("objective.covariance", "banded", "one of diagonal, full"),
        ("objective.moment_decay", 1.0, "below 1"),
        ("objective.negentropy_components", -1, "must not be negative"),
        ("objective.negentropy_weight", -0.1, "must not be negative"),
        ("objective.samples", 0, "must be positive"),
        ("objective.component_entropy_weight", -1.0, "must not be negative"),
        ("objective.component_entropy_weight", 1.0, "components above 1"),
        ("objective.component_chunk", 2, "must divide the 1 draws"),
        ("objective.component_chunk", 1, "group or affine"),
        ("model.weights", "equal", "one of learned, uniform"),
        ("model.prior", "flow", "one of normal, mixture, vamp"),
        ("model.prior", "vamp", "elbo or siwae"),
        ("model.prior_components", 0, "must be positive"),
        ("objective.variance", "within", "one of total, between"),
        ("objective.reconstruction_weight", float("nan"), "finite"),
        ("objective.collapse_target", 0.0, "must be positive"),
        ("adversarial.loss", "wgan", "one of hinge, bce, none"),
        ("optimizer.beta1", -0.1, "at least 0"),
        ("optimizer.decay_fraction", 1.5, "from 0 to 1"),
        ("optimizer.decay_fraction", -0.1, "from 0 to 1"),
        ("train.batch_size", 12, "number of devices, 8"),
        ("train.steps", 0, "must be positive"),
        ("seed", -1, "must not be negative"),
        ("seed", 2**32, "must be below"),
        ("train.steps", 2**31, "must be below"),
    ],
)
def test_bad_values_are_refused_with_what_they_may_be(key, value, sentence):
    assert_refused({key: value}, key, sentence)


@pytest.mark.parametrize(
    ("fields", "key", "sentence"),
    [
        (
            {"adversarial.prior_samples": True, "adversarial.loss": "none"},
            "adversarial.loss",
            "to hinge or bce",
        ),
        (
            {"adversarial.prior_samples": True, "model.norm": "batch"},
            "model.norm",
            "to group or affine",
        ),
        (
            {"objective.kl": "elbo", "objective.moment_decay": 0.9},
            "objective.moment_decay",
            "aggregate only",
        ),
        (
            {"objective.kl": "siwae", "objective.covariance": "full"},
            "objective.covariance",
            "aggregate only",
        ),
        (
            {"objective.kl": "elbo", "objective.variance": "between"},
            "objective.variance",
            "aggregate only",
        ),
        (
            {"objective.kl": "siwae", "objective.kl_weight": 0.0},
            "objective.kl_weight",
            "divides",
        ),
        (
            {"objective.kl": "elbo", "objective.negentropy_components": 8},
            "objective.negentropy_components",
            "aggregate only",
        ),
        (
            {"objective.kl": "elbo", "objective.negentropy_weight": 0.5},
            "objective.negentropy_weight",
            "aggregate only",
        ),
        (
            {"objective.negentropy_weight": 0.5},
            "objective.negentropy_weight",
            "negentropy_components above 0",
        ),
        (
            {"objective.variance": "between", "objective.covariance": "full"},
            "objective.covariance",
            "variance = total",
        ),
        (
            {"objective.variance": "between", "objective.negentropy_components": 8},
            "objective.negentropy_components",
            "variance = total",
        ),
        (
            {
                "objective.component_entropy_weight": 1.0,
                "model.components": 2,
                "model.weights": "uniform",
            },
            "objective.component_entropy_weight",
            "weights = learned",
        ),
    ],
)
def test_forms_that_do_not_go_together_are_refused(fields, key, sentence):
    assert_refused(fields, key, sentence)
