"""Where benchmarks/face_detector.py looks, and which runs it takes; with drawn weights, for the package that has them is of the benchmarks alone."""

import json

import jax
import numpy as np
import pytest
from test_main import ROOT

from gamix_jax.errors import InputError

# Of MTCNN's last network in Keras' order: kernel, bias and slope of each layer, then
# kernels and biases of box, landmarks and face.
SHAPES = [
    *[(3, 3, 3, 32), (32,), (1, 1, 32), (3, 3, 32, 64), (64,), (1, 1, 64)],
    *[(3, 3, 64, 64), (64,), (1, 1, 64), (2, 2, 64, 128), (128,), (1, 1, 128)],
    *[(1152, 256), (256,), (256,), (256, 4), (4,), (256, 10), (10,), (256, 2), (2,)],
]


@pytest.fixture
def face_detector(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import face_detector

    return face_detector


@pytest.mark.parametrize("size", [32, 64])
def test_the_detector_sees_the_middle_of_an_image_and_nothing_else(face_detector, size):
    random = np.random.default_rng(0)
    weights = [random.normal(0.0, 0.1, shape).astype("f4") for shape in SHAPES]
    detect = jax.jit(lambda images: face_detector.detect(weights, images))
    images = random.integers(0, 256, (1, size, size, 3), np.uint8)
    around = images.copy()
    unit = size // 32  # rows 7 to 26 of 32, columns 6 to 25
    around[:, : 7 * unit] = around[:, 27 * unit :] = 0
    around[:, :, : 6 * unit] = around[:, :, 26 * unit :] = 0
    features = detect(images)[0]
    assert features.shape == (1, 256)
    np.testing.assert_array_equal(detect(around)[0], features)
    for row, column in ((7 * unit, 6 * unit), (27 * unit - 1, 26 * unit - 1)):
        within = images.copy()
        within[:, row, column] ^= 255
        assert np.any(detect(within)[0] != features)


def test_each_column_is_of_its_own_samples(face_detector, tmp_path, monkeypatch):
    """Of a model whose samples are white, and so faces, the more often the more Gaussians they are of."""
    white = {None: 0, 1: 5, 10: 10, "reconstructions": 15}  # of 20 images

    def images(kind):
        white_first = np.arange(20) < white[kind]
        return np.where(white_first, 1.0, -1.0)[:, None, None, None] * np.ones(
            (4, 4, 3)
        )

    class Model:
        def encode(self, train):
            return self

        def sample(self, key, count=None, sampler=None):
            if count is None:  # draws of the posterior
                return jax.random.normal(key, (200, 2))
            return images(None if sampler is None else len(sampler.mean))

        def reconstruct(self, test):
            return images("reconstructions")

    def detector(levels):
        faces = np.mean(levels, axis=(1, 2, 3)) / 255
        return np.eye(256)[np.arange(len(levels))] + faces[:, None], faces

    monkeypatch.setattr(face_detector.gamix_jax, "load", lambda workdir: Model())
    monkeypatch.setattr(face_detector.tables, "read_row", lambda workdir: {})
    test = np.zeros((20, 4, 4, 3), np.uint8)
    real, share = face_detector.look_at(detector, test)
    assert share == 0.0
    row = face_detector.row_of(tmp_path, detector, test, real, test)
    assert row["faces"] == 0.0
    assert row["faces, fitted Gaussian"] == 5 / 20
    assert row["faces, fitted mixture"] == 10 / 20
    assert row["faces, reconstructions"] == 15 / 20
    distances = [row[distance] for distance in face_detector.SHARES]
    # No white images among those that samples are beside.
    assert distances == sorted(distances)
    assert distances[0] == pytest.approx(0.0, abs=1e-6)


def test_only_runs_of_these_images_of_one_length_and_todays_settings(
    face_detector, tmp_path
):
    from compare_settings import Run, base_config, run_config
    from compare_tables import digest_images

    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_text("a")
    other, folder = tmp_path / "faces-0", tmp_path / f"faces-{digest_images(images)}"
    run = Run("beta-VAE", 8000.0, 0)
    config = run_config(base_config("faces", "elsewhere", 100), run)
    no_faces = folder.with_name(folder.name.replace("faces", "digits"))
    for wrong in (other, no_faces):
        with pytest.raises(InputError, match=r"is not of .*; name the folder"):
            face_detector.find_runs(wrong, images)
    with pytest.raises(InputError, match="no run that is done"):
        face_detector.find_runs(folder, images)

    def leave(run, config):
        workdir = folder / run.name
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict()))
        (workdir / "evaluation.json").write_text("{}")
        return workdir

    workdir = leave(run, config)
    assert face_detector.find_runs(folder, images) == {workdir: run}
    config.train.steps, config.seed = 200, 1
    leave(run._replace(seed=1), config)
    with pytest.raises(InputError, match=r"0-1 is not of 100 steps.*; move it away"):
        face_detector.find_runs(folder, images)
