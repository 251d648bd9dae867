"""That benchmarks/face_detector.py looks where the face is; with drawn weights, for the package that has them is of the benchmarks alone."""

import jax
import numpy as np
import pytest
from test_main import ROOT

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
