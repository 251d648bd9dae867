"""Our networks and losses against every number of a run of the author's code (tests/author.py says how it is mapped)."""

from pathlib import Path

import author
import jax
import numpy as np
import pytest

SMALL = Path(__file__).parent / "author_golden.npz"
WHOLE = Path(__file__).parents[2] / "shared/reference/author_code_golden.npz"
# Agreement of float32 networks of some 60 layers: the differences seen are below 1e-6
# forward and 4e-6 in gradients.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(SMALL))


@pytest.fixture(scope="module")
def ours(arrays):
    return author.forward_from_author(arrays)


def test_every_output_and_loss_agrees(arrays, ours):
    expected = {key for key in arrays if key.startswith(("out/", "loss/"))}
    assert set(ours) == expected
    for key in expected:
        assert ours[key].shape == arrays[key].shape, key
        assert np.max(np.abs(ours[key] - arrays[key])) <= TOLERANCE * np.max(
            np.abs(arrays[key])
        ), key


def test_every_weight_has_its_place(arrays):
    models = author.models_from_author(arrays)
    size, channels = models[0].image_size, models[0].channels
    images = np.zeros((1, size, size, channels), np.float32)
    wanted = (
        jax.eval_shape(
            lambda: models[0].init(
                jax.random.key(0), images, jax.random.split(jax.random.key(0), 1)
            )
        ),
        jax.eval_shape(lambda: models[1].init(jax.random.key(0), images)),
    )
    found = author.variables_from_author(arrays)
    assert jax.tree.map(np.shape, wanted) == jax.tree.map(np.shape, found)


def test_gradients_of_both_players_agree(arrays):
    """The small file holds digests of the author's gradients."""
    for ours, theirs, count in zip(
        author.our_gradients(arrays),
        author.gradients_from_author(arrays),
        (208, 24),
        strict=True,
    ):
        ours, theirs = (
            dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (ours, theirs)
        )
        assert ours.keys() == theirs.keys()
        assert len(ours) == count  # trainable arrays of the author's two networks
        for path, gradient in ours.items():
            norm = theirs[path][0]
            assert (
                np.max(np.abs(author.digest(gradient) - theirs[path]))
                <= TOLERANCE * norm
            ), path


@pytest.mark.skipif(
    not WHOLE.exists(), reason="the whole file of the author's numbers is not at hand"
)
@pytest.mark.slow
def test_every_element_of_the_gradients_agrees():
    arrays = dict(np.load(WHOLE))
    for ours, theirs in zip(
        author.our_gradients(arrays), author.gradients_from_author(arrays), strict=True
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=TOLERANCE * np.max(np.abs(b))
            ),
            ours,
            theirs,
        )
