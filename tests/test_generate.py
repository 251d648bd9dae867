"""Every mode that makes pictures, on a run of digits: what it leaves, from whose images, and what it refuses."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import gamix_jax
from gamix_jax.errors import InputError
from gamix_jax.generate import (
    FRAMES,
    MODES,
    STEPS,
    Options,
    generate,
    linear,
    spherical,
)

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def made(digits_run, tmp_path_factory):
    """The folder of every mode, a few images each."""
    out = tmp_path_factory.mktemp("made")
    for mode in MODES:
        options = Options(out=str(out / mode), count=40 if mode == "latent" else 3)
        generate(mode, digits_run, options, QUIET)
    return out


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def grid(columns, rows):
    """8x8 images enlarged six times, a line of one pixel between."""
    return columns * 49 - 1, rows * 49 - 1


def test_every_mode_leaves_its_files(made):
    found = {str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}
    numbered = [f"images/{i:05d}.png" for i in range(3)]
    expected = {
        "sample": ["samples.png", "samples.npz", *numbered],
        "reconstruct": ["reconstructions.png", *numbered],
        "interpolate": [
            f"{p}.{s}" for p in ("linear", "spherical") for s in ("png", "gif")
        ],
        "traverse": ["traversal.png", "traversal.gif", "dimensions.txt"],
        "latent": [
            *(f"{p}.png" for p in ("map_by_label", "map_by_component", "variances")),
            "aggregate.png",
            "latents.npz",
        ],
    }
    assert found == {f"{m}/{name}" for m, names in expected.items() for name in names}


def test_pictures_have_a_tile_for_each_image(made):
    assert size_of(made / "sample/samples.png") == grid(8, 1)
    assert size_of(made / "sample/images/00000.png") == (8, 8)
    assert size_of(made / "reconstruct/reconstructions.png") == grid(3, 2)
    assert size_of(made / "interpolate/linear.png") == grid(STEPS, 3)
    assert size_of(made / "traverse/traversal.png") == grid(STEPS, 4)
    with Image.open(made / "interpolate/spherical.gif") as animation:
        assert animation.n_frames == 2 * FRAMES - 2  # forth and back
        assert animation.size == grid(3, 1)


def test_samples_are_what_their_arrays_say(made, digits_run, tmp_path):
    with np.load(made / "sample/samples.npz") as arrays:
        z, images = arrays["z"], arrays["images"]
    with Image.open(made / "sample/images/00002.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), images[2, :, :, 0])
    decoded = np.asarray(gamix_jax.load(digits_run).decode(z))
    np.testing.assert_allclose(
        images / 127.5 - 1, np.clip(decoded, -1, 1), atol=0.5 / 127 + 1e-4
    )
    other = Options(out=str(tmp_path), count=3, seed=1)
    generate("sample", digits_run, other, QUIET)
    with np.load(tmp_path / "samples.npz") as arrays:
        assert not np.any(arrays["z"] == z)


def test_samples_from_a_fitted_mixture(digits_run, tmp_path):
    """Its codes have the aggregate posterior's mean, not the prior's."""
    options = Options(out=str(tmp_path), count=1000, sampler="gmm")
    generate("sample", digits_run, options, QUIET)
    with np.load(tmp_path / "samples.npz") as arrays:
        z = arrays["z"]
    generate("latent", digits_run, Options(out=str(tmp_path / "latent")), QUIET)
    with np.load(tmp_path / "latent/latents.npz") as arrays:
        held_out = arrays["z"]
    error = np.sqrt(z.var(axis=0) / len(z) + held_out.var(axis=0) / len(held_out))
    np.testing.assert_array_less(
        np.abs(z.mean(axis=0) - held_out.mean(axis=0)), 5 * error
    )


def test_the_users_images_are_taken_in_order(digits_run, tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (8, 8), np.uint8) for _ in range(3)]
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"mine/{i}.png")
    expected = gamix_jax.load(digits_run).reconstruct(np.stack(pixels)[..., None])
    for given, numbers in (("mine", range(3)), ("mine/1.png", [1])):
        out = tmp_path / "out" / given
        options = Options(out=str(out), images=str(tmp_path / given))
        generate("reconstruct", digits_run, options, QUIET)
        for place, number in enumerate(numbers):
            with Image.open(out / f"images/{place:05d}.png") as picture:
                found = np.asarray(picture) / 127.5 - 1
            np.testing.assert_allclose(
                found, np.clip(expected[number, :, :, 0], -1, 1), atol=0.5 / 127 + 1e-4
            )


def test_walks_begin_and_end_at_the_images():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 8))
    for walk in (linear, spherical):
        np.testing.assert_allclose(walk(first, second, 0.0), first, atol=1e-12)
        np.testing.assert_allclose(walk(first, second, 1.0), second, atol=1e-12)


def test_a_spherical_walk_keeps_the_norm_and_turns_evenly():
    first, second = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
    for t in (0.25, 0.5, 0.9):
        angle = t * np.pi / 2
        expected = [[2 * np.cos(angle), 2 * np.sin(angle)]]
        np.testing.assert_allclose(spherical(first, second, t), expected, atol=1e-12)
    # Parallel vectors have no great circle of their own.
    np.testing.assert_allclose(spherical(first, 3 * first, 0.5), [[4.0, 0.0]])


def test_dimensions_are_those_asked_for(digits_run, tmp_path):
    options = Options(out=str(tmp_path), dimensions=(2, 0), deviations=1.5)
    generate("traverse", digits_run, options, QUIET)
    assert (tmp_path / "dimensions.txt").read_text() == "2\n0\n"
    assert size_of(tmp_path / "traversal.png") == grid(STEPS, 2)


@pytest.mark.parametrize(
    ("mode", "options", "sentence"),
    [
        ("traverse", {"dimensions": (4,)}, "names 4; the run has 0 to 3"),
        ("traverse", {"deviations": 0.0}, "--deviations is 0.0"),
        ("reconstruct", {"count": 181}, "181 images .* 180 are held out"),
        ("reconstruct", {"images": "nowhere"}, "nowhere does not exist"),
        ("sample", {"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ("latent", {"count": 2}, "at least 3"),
    ],
)
def test_what_does_not_fit_is_refused(digits_run, tmp_path, mode, options, sentence):
    with pytest.raises(InputError, match=sentence):
        generate(mode, digits_run, Options(out=str(tmp_path), **options), QUIET)


def test_one_image_cannot_be_interpolated(digits_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    options = Options(out=str(tmp_path), images=str(tmp_path / "one.png"))
    with pytest.raises(InputError, match="at least two images"):
        generate("interpolate", digits_run, options, QUIET)
