"""A trained model as notebooks use it, and how it is opened."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import damage
from test_main import ROOT

import gamix_jax
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import flatten
from gamix_jax.errors import InputError
from gamix_jax.state import create_state
from gamix_jax.steps import make_steps, scale_images, to_levels
from gamix_jax.trained import _in_batches, read_config


@pytest.fixture(scope="module")
def model(digits_run):
    return gamix_jax.load(digits_run)


def some(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_is_the_checkpoint_of_the_run_with_averaged_weights(model, digits_run):
    assert int(model.state.step) == 4
    assert flatten(model.config) == flatten(read_config(digits_run))
    checkpoints = Checkpoints(digits_run, read_only=True)
    state = checkpoints.restore(create_state(model.config))
    checkpoints.close()
    expected = jax.jit(make_steps(model.config).reconstruct)(state, some(3))
    np.testing.assert_allclose(model.reconstruct(some(3)), expected, atol=1e-5)


def test_levels_and_floats_are_the_same_images(model):
    levels = some(3)
    of_levels, of_floats = (
        model.encode(levels),
        model.encode(scale_images(jnp.asarray(levels))),
    )
    jax.tree.map(np.testing.assert_array_equal, of_levels, of_floats)
    np.testing.assert_array_equal(to_levels(scale_images(jnp.asarray(levels))), levels)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_any_number_of_images_is_as_one_by_one(model, count):
    images = some(count)
    keys = jax.random.key(0)
    few = slice(count - 1, count)
    np.testing.assert_allclose(
        model.encode(images).mean[few], model.encode(images[few]).mean, atol=1e-5
    )
    z = np.random.default_rng(1).normal(size=(count, 4))
    np.testing.assert_allclose(model.decode(z)[few], model.decode(z[few]), atol=1e-5)
    assert model.log_prob(images, keys, 0.1, samples=2).shape == (count,)
    assert model.decode(z[None, :, None]).shape == (1, count, 1, 8, 8, 1)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (64, [64]), (65, [128]), (300, [256, 64])]
)
def test_batches_are_padded_to_twice_their_size_at_most(count, sizes):
    seen = []

    def double(x):
        seen.append(len(x))
        return 2 * x

    rows = jnp.arange(float(count))
    found = _in_batches(double, 256, rows)
    assert seen == sizes
    np.testing.assert_array_equal(found, 2 * rows)


def test_what_fits_costs_no_copy():
    """The result is what the network gave, not a part of it: small networks are no slower to use than to call."""
    given = []

    def network(x):
        given.append(x)
        return x

    images = jnp.zeros((16, 8, 8, 1))
    assert _in_batches(network, 256, images) is given[0]


def test_samples_are_seeded_and_from_the_prior(model):
    key = jax.random.key(7)
    first = model.sample(key, 3)
    assert first.shape == (3, 8, 8, 1)
    np.testing.assert_array_equal(first, model.sample(key, 3))
    # Without noise a sample is the decoder's mean at the prior's.
    cold = model.sample(key, 3, temperature=1e-12)
    np.testing.assert_allclose(cold, model.decode(np.zeros((3, 4))), atol=1e-4)


def test_log_prob_is_a_probability_of_whole_levels(model):
    images, key = some(2), jax.random.key(0)
    scale = model.fit_scale(images, key)
    # A reconstruction by chance is off by about what two random levels are, 2/3.
    assert 0.3 < scale < 1.0
    found = model.log_prob(images, key, scale)
    assert np.all(np.asarray(found) < 0)
    nearby = scale_images(images) + 0.3 / 127.5  # rounds to the same levels
    np.testing.assert_array_equal(found, model.log_prob(nearby, key, scale))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.encode(np.zeros((2, 9, 9, 1))), r"are \[2, 9, 9, 1\]; .* 8, 8, 1"),
        (lambda m: m.encode(some(1)[0]), r"are \[8, 8, 1\]"),
        (lambda m: m.encode(some(0)), r"are \[0, 8, 8, 1\]"),
        (lambda m: m.encode(some(1).astype(int)), "int.*give uint8 levels or floats"),
        (lambda m: m.decode(np.zeros((2, 5))), r"last axis must be the latent size, 4"),
    ],
)
def test_what_does_not_fit_is_refused(model, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(model)


def test_opening_changes_nothing_and_passes_damage_over(digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    damage(run / "checkpoints/4/state/manifest.ocdbt", "flipped")
    (run / "checkpoints/5.orbax-checkpoint-tmp").mkdir()  # a save under way
    found = contents(run)
    assert int(gamix_jax.load(run).state.step) == 2
    assert contents(run) == found
    assert (run / "checkpoints/5.orbax-checkpoint-tmp").is_dir()


def test_what_holds_no_run_is_refused(digits_run, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        gamix_jax.load(tmp_path)
    shutil.copy(digits_run / "config.json", tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        gamix_jax.load(tmp_path)
    config = json.loads((digits_run / "config.json").read_text())
    config["model"]["unheard_of"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"not of this version.*unheard_of"):
        gamix_jax.load(tmp_path)


def test_the_notebook_in_docs(digits_run, monkeypatch, tmp_path):
    """Its code runs from start to end, with another run in place of its own."""
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text())
    cells = [
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"
    ]
    assert any("gamix_jax.load" in code for code in cells)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter runs it
    shutil.copytree(digits_run, tmp_path / "runs/digits")
    namespace = {}
    for code in cells:
        exec(compile(code, "docs/notebook.ipynb", "exec"), namespace)
