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
    around, within = images.copy(), images.copy()
    unit = size // 32  # rows 8 to 27 of 32, columns 6 to 25
    around[:, : 8 * unit] = around[:, 28 * unit :] = 0
    around[:, :, : 6 * unit] = around[:, :, 26 * unit :] = 0
    within[:, 27 * unit, 25 * unit] ^= 255
    (features, face), (same, _), (other, _) = map(detect, (images, around, within))
    assert features.shape == (1, 256)
    assert 0 < face[0] < 1
    np.testing.assert_array_equal(same, features)
    assert np.any(other != features)
