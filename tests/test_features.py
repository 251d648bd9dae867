"""Feature extractors: torch-fidelity's network, files of other networks, the classifier."""

import errno
import json
import re
import sys
from pathlib import Path

import inception_golden as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from gamix_jax.config import default_config
from gamix_jax.data import open_images
from gamix_jax.errors import InputError
from gamix_jax.features import files, inception, open_features, train_classifier
from gamix_jax.parallel import map_over_devices, put_on_devices, replicate
from gamix_jax.steps import AXIS

with np.load(Path(__file__).parent / "inception_golden.npz") as file:
    TORCH = dict(file)
QUIET = Console(quiet=True)


def both_splits(**changes):
    data = default_config().data
    data.update(size=8, **changes)
    return open_images(data, "train"), open_images(data, "test")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Labelled -7, -4, ... 20; the first ten held out by a label that is not trained on."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = np.uint8(15 * load_digits().images), 3 * load_digits().target - 7
    labels[:10] = 300
    arrays = {"test_images": images[:300], "train_images": images[300:]}
    np.savez(path, test_labels=labels[:300], train_labels=labels[300:], **arrays)
    return both_splits(source="array", dir=str(path))


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    """The file, in a folder that was not there, and the accuracy."""
    path = tmp_path_factory.mktemp("classifier") / "made" / "digits.npz"
    return path, train_classifier(*digits, path, QUIET, steps=60)


@pytest.fixture(scope="module")
def weights():
    """Of InceptionV3, as in inception_golden.py."""
    shapes = {array.name: array.shape for array in inception._torch_arrays().values()}
    return golden.random_weights(shapes)


def test_resize_is_torch_fidelitys():
    resized = inception.resize_bilinear(np.float32(golden.images()), 299)
    patch = np.asarray(resized)[:, golden.PATCH][:, :, golden.PATCH]
    np.testing.assert_allclose(patch, TORCH["resized"], rtol=1e-6)


def test_grey_is_repeated_and_scaled():
    grey = golden.images()[..., :1]
    made = np.asarray(inception.preprocess(grey))
    np.testing.assert_array_equal(made, inception.preprocess(grey.repeat(3, axis=-1)))
    # The first pixel stays where it is.
    np.testing.assert_array_equal(made[:, 0, 0, 2], grey[:, 0, 0, 0] / 128.0 - 1.0)


def test_inception_is_torch_fidelitys(weights, tmp_path):
    """Random weights, so that each convolution matters; batch statistics, offsets and scales too."""
    path = tmp_path / "inception.npz"
    unused = {"fc.weight": np.zeros((1008, 2048), np.float32)}
    unused |= {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(0)}
    np.savez(path, **weights, **unused)
    features = open_features("inception", path, image_size=48, channels=3)
    assert (features.name, features.size) == ("inception", 2048)
    values = jax.jit(features.apply)(features.variables, golden.images())
    assert values.dtype == jnp.float32
    tolerance = 1e-5 * TORCH["features"].max()  # float32; 4e-7 was measured
    np.testing.assert_allclose(values, TORCH["features"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("Mixed_7c.branch_pool.bn.bias"), "lacks Mixed_7c.branch_pool"),
        (lambda w: [w.pop(name) for name in list(w)[:9]], "and 7 more"),
        (lambda w: w.update({"AuxLogits.fc.bias": w["Conv2d_1a_3x3.bn.bias"]}), "Aux"),
        # ImageNet's own, of 1,000 classes
        (
            lambda w: w.update({"fc.weight": np.zeros((1000, 2048))}),
            "has fc.weight of [1000, 2048] in place of [1008, 2048]",
        ),
    ],
)
def test_weights_of_another_network(weights, monkeypatch, change, said):
    other = dict(weights)
    change(other)
    monkeypatch.setattr(inception, "read_arrays", lambda path: other)
    with pytest.raises(InputError, match="another network") as error:
        open_features("inception", Path("other.npz"), 8, 1)
    assert said in str(error.value)


def test_files_that_cannot_be_read(classifier, tmp_path, monkeypatch):
    digits_file, _ = classifier
    (tmp_path / "weights.txt").touch()
    (tmp_path / "damaged.npz").write_bytes(digits_file.read_bytes()[:-100])
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    np.savez(tmp_path / "other.npz", **{"Conv2d_1a_3x3.bn.bias": np.zeros(32)})
    cases = {
        "missing.npz": "does not exist",
        "weights.txt": "neither in .npz nor in .pth",
        "damaged.npz": "cannot be read as .npz",
        "objects.npz": "cannot be read as .npz",
        "other.npz": "another network",
    }
    for file, said in cases.items():
        for name in ("inception", "classifier"):
            with pytest.raises(InputError, match=said):
                open_features(name, tmp_path / file, 8, 1)
    with pytest.raises(InputError, match=r"lacks Conv2d_1a_3x3.* has header"):
        open_features("inception", digits_file, 8, 1)
    (tmp_path / "weights.pth").touch()
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(InputError, match="install it, or make"):
        open_features("inception", tmp_path / "weights.pth", 8, 1)


def test_extractors_that_do_not_fit(classifier):
    path, _ = classifier
    trained = "trained on images of 8x8 pixels with 1 channel, and these are of "
    with pytest.raises(InputError, match=trained + "16x16 pixels with 1 channel;"):
        open_features("classifier", path, 16, 1)
    with pytest.raises(InputError, match=trained + "8x8 pixels with 3 channels;"):
        open_features("classifier", path, 8, 3)
    with pytest.raises(InputError, match="these have 4 channels"):
        open_features("inception", path, 8, 4)
    with pytest.raises(InputError, match="no features 'vgg'"):
        open_features("vgg", path, 8, 1)


def test_the_classifier_learns_and_its_file_holds_what_it_learned(digits, classifier):
    """By its linear layer, applied here, the features give the accuracy that was returned."""
    (_, test), (path, accuracy) = digits, classifier
    assert accuracy > 0.8  # chance is 0.1; 0.9 was measured
    features = open_features("classifier", path, 8, 1)
    assert (features.name, features.size) == ("classifier", 64)
    values = np.asarray(
        jax.jit(features.apply)(features.variables, test.read(np.arange(len(test))))
    )
    assert values.shape == (len(test), 64)
    assert values.dtype == np.float32
    linear = features.variables["params"]["linear"]
    found = np.argmax(values @ linear["kernel"] + linear["bias"], axis=-1)
    # The ten that have a label of their own are counted, as wrong.
    assert np.mean(3 * found - 7 == test.labels()) == accuracy
    header = json.loads(str(files.read_arrays(path)["header"]))
    assert header["held_out_accuracy"] == accuracy
    assert header["held_out_images"] == 300
    assert header["classes"] == list(range(-7, 21, 3))
    assert list(path.parent.iterdir()) == [path]  # nothing is left beside it


def test_the_digest_is_of_the_weights(classifier, tmp_path):
    path, _ = classifier
    arrays = files.read_arrays(path)
    digest = lambda path: open_features("classifier", path, 8, 1).digest
    np.savez_compressed(tmp_path / "same.npz", **arrays)
    assert digest(tmp_path / "same.npz") == digest(path)
    arrays["norm/GroupNorm_0/bias"][7] += 1e-6
    np.savez(tmp_path / "other.npz", **arrays)
    assert digest(tmp_path / "other.npz") != digest(path)


def test_features_do_not_depend_on_the_batch_nor_on_the_devices(digits, classifier):
    path, _ = classifier
    features = open_features("classifier", path, 8, 1)
    images = digits[0].read(np.arange(16))
    apply = jax.jit(features.apply)
    whole = np.asarray(apply(features.variables, images))
    one = apply(features.variables, images[5:6])
    np.testing.assert_allclose(one[0], whole[5], rtol=1e-5, atol=1e-6)
    mapped = map_over_devices(
        lambda variables, images: jax.lax.all_gather(
            features.apply(variables, images), AXIS, tiled=True
        )
    )
    assert jax.device_count() == 8
    on_all = mapped(replicate(features.variables), put_on_devices(images))
    np.testing.assert_allclose(on_all, whole, rtol=1e-5, atol=1e-6)


def test_refusals_before_training(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("gamix_jax.features.classifier._train", pytest.fail)
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for out, said in {
        "file/out.npz": "cannot be written",
        "folder.npz": "name a file, OUT.npz",
        "out.pth": "name a file, OUT.npz",
    }.items():
        with pytest.raises(InputError, match=said):
            train_classifier(*digits, tmp_path / out, QUIET)
    noise = np.zeros((12, 8, 8), np.uint8)
    np.save(tmp_path / "bare.npy", noise)
    np.savez(tmp_path / "same.npz", train_images=noise, train_labels=np.full(12, 3))
    for name, said in {"bare.npy": "have none", "same.npz": "the label 3"}.items():
        images = both_splits(source="array", dir=str(tmp_path / name))
        with pytest.raises(InputError, match=said):
            train_classifier(*images, tmp_path / "out.npz", QUIET)
    assert not (tmp_path / "out.npz").exists()


def test_a_full_disk_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = tmp_path / "out.npz"
    files.write_arrays(path, {"x": np.arange(3)})

    def fill(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    said = re.escape("cannot be written (No space left on device); give it room")
    with pytest.raises(InputError, match=said):
        files.write_arrays(path, {"x": np.arange(4)})
    np.testing.assert_array_equal(files.read_arrays(path)["x"], np.arange(3))
    assert list(tmp_path.iterdir()) == [path]
