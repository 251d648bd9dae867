"""Published sets from their makers' files: the examples that TFDS's own builders make; damaged files."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_files import (
    as_aligned,
    write_celeb_a,
    write_celeb_a_hq,
    write_cifar10,
    write_mnist,
)
from test_prepare import QUIET, drawn, opened

from gamix_jax.data import originals, prepare
from gamix_jax.errors import InputError


@pytest.mark.parametrize("annotations", [True, False])
def test_celeb_a_is_what_its_own_builder_makes(tmp_path, annotations):
    """The oracle is TFDS's generator of examples, given the same files; without its lists, the images alone."""
    raw, out = tmp_path / "raw", tmp_path / "tfds"
    faces = [as_aligned(face) for face in drawn(4, 16, 16)]
    splits = {"train": faces[:2], "validation": faces[2:3], "test": faces[3:]}
    write_celeb_a(raw, splits, annotations)
    prepare.prepare_original("celeb_a", raw, out, QUIET)
    builder = tfds.builder("celeb_a", data_dir=out, file_format="array_record")
    assert builder.is_prepared()
    with zipfile.ZipFile(raw / "img_align_celeba.zip") as archive:
        images = {os.path.basename(n): archive.read(n) for n in archive.namelist()}
    if not annotations:
        stored = builder.as_data_source(
            "train", decoders={"image": tfds.decode.SkipDecoding()}
        )
        assert [example["image"] for example in stored] == [
            images["000001.jpg"],
            images["000002.jpg"],
        ]
        return
    lists = {
        "list_eval_partition": raw / "list_eval_partition.txt",
        "landmarks_celeba": raw / "list_landmarks_align_celeba.txt",
        "list_attr_celeba": raw / "list_attr_celeba.txt",
        "identity_celeba": raw / "identity_CelebA.txt",
    }
    for number, split in enumerate(("train", "validation", "test")):
        stored = builder.as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        expected = [
            example for _, example in builder._generate_examples(number, lists, images)
        ]
        assert len(stored) == len(expected) == len(splits[split])
        for a, b in zip(stored, expected, strict=True):
            assert a == b


def test_celeb_a_hq(tmp_path):
    """From the tar of images of the size, as they are; from a folder of larger ones, resized."""
    images = drawn(2, 256, 256)
    write_celeb_a_hq(tmp_path / "raw", images)
    prepare.prepare_original(
        "celeb_a_hq/256", tmp_path / "raw", tmp_path / "tfds", QUIET
    )
    config = {"name": "celeb_a_hq/256", "size": 256, "crop": "celeba_hq"}
    config |= {"train_split": "train[:50%]", "test_split": "train[50%:]"}
    for split, image in zip(("train", "test"), images, strict=True):
        (stored,) = opened(tmp_path / "tfds", split, **config)
        np.testing.assert_array_equal(stored, image)
    builder = tfds.builder("celeb_a_hq/256", data_dir=tmp_path / "tfds")
    assert (
        builder.as_data_source("train")[1]["image/filename"] == b"data256x256/00001.png"
    )
    (tmp_path / "large").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "large/1.png")
    prepare.prepare_original(
        "celeb_a_hq/64", tmp_path / "large", tmp_path / "tfds", QUIET
    )
    (stored,) = opened(
        tmp_path / "tfds",
        name="celeb_a_hq/64",
        size=64,
        test_split="",
        test_fraction=0.0,
    )
    expected = Image.fromarray(images[0]).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_small_published_sets(tmp_path, name):
    """As written, in the order of the files."""
    shape = (32, 32, 3) if name == "cifar10" else (28, 28)
    random = np.random.default_rng(0)
    splits = {
        split: (
            random.integers(0, 256, (count, *shape), np.uint8),
            np.arange(count) % 10,
        )
        for split, count in (("train", 12), ("test", 3))
    }
    (write_cifar10 if name == "cifar10" else write_mnist)(tmp_path / "raw", splits)
    prepare.prepare_original(name, tmp_path / "raw", tmp_path / "tfds", QUIET)
    for split, (images, labels) in splits.items():
        stored = opened(
            tmp_path / "tfds",
            split,
            name=name,
            size=shape[0],
            channels=1 + 2 * len(shape[2:]),
        )
        np.testing.assert_array_equal(
            list(stored), images.reshape(*images.shape[:3], -1)
        )
        np.testing.assert_array_equal(stored.labels(), labels)


def test_damaged_published_files_are_named(tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8)
    whole = {"train": (images, labels), "test": (images, labels)}
    faces = {"train": [np.zeros((218, 178, 3), np.uint8)], "validation": [], "test": []}

    def refused(sentence, dataset):
        with pytest.raises(InputError, match=sentence) as error:
            prepare.prepare_original(dataset, tmp_path, tmp_path / "tfds", QUIET)
        assert "\n" not in str(error.value)

    refused("must be one of celeb_a", "imagenet")
    refused("add the size", "celeb_a_hq")
    write_celeb_a_hq(tmp_path, [])
    refused("holds data256x256.tar, not data64x64.tar", "celeb_a_hq/64")
    refused("TFDS has no data set 'celeb_a_hq/100'", "celeb_a_hq/100")
    refused("does not hold train-images-idx3-ubyte.gz", "mnist")
    refused("does not hold cifar-10-python.tar.gz", "cifar10")
    refused("does not hold img_align_celeba.zip", "celeb_a")
    write_mnist(tmp_path, whole)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    refused("t10k-images-idx3-ubyte.gz is not a whole idx file", "mnist")
    write_mnist(tmp_path, whole | {"test": (images, labels[:1])})
    refused("1 labels; fetch the files again", "mnist")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no tar")
    refused("cifar-10-python.tar.gz is not CIFAR-10", "cifar10")
    for file, content, sentence in (
        ("list_attr_celeba.txt", b"1\nx y\n", "list_attr_celeba.txt lacks 000001.jpg"),
        ("list_attr_celeba.txt", b"1\nx y\n000001.jpg 1\n", "has not 2 values"),
        ("list_attr_celeba.txt", b"1\nx\n000001.jpg \xff", "not CelebA's list"),
        ("list_eval_partition.txt", b"000001.jpg\n", "not CelebA's list"),
        ("list_eval_partition.txt", b"000001.jpg 2\n", "names no image to train on"),
    ):
        write_celeb_a(tmp_path, faces)
        (tmp_path / file).write_bytes(content)
        refused(sentence, "celeb_a")
    write_celeb_a(tmp_path, faces)
    (tmp_path / "list_attr_celeba.txt").unlink()
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n")
    (tmp_path / "list_landmarks_align_celeba.txt").unlink()
    (tmp_path / "identity_CelebA.txt").unlink()
    refused("lacks 1 images .* 000002.jpg the first", "celeb_a")


def test_a_pickle_that_would_run_is_refused(tmp_path):
    ran = tmp_path / "ran"
    content = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match=r"posix\.system|os\.system"):
        prepare.prepare_original("cifar10", tmp_path, tmp_path / "tfds", QUIET)
    assert not ran.exists()


def test_damaged_cifar10_is_never_prepared_with_other_pixels(tmp_path):
    """One byte changed anywhere; gzip's sum finds it, as does its head."""
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    splits = dict.fromkeys(("train", "test"), (images, np.arange(10)))
    write_cifar10(tmp_path, splits)
    path = tmp_path / "cifar-10-python.tar.gz"
    whole = path.read_bytes()
    for place in np.random.default_rng(1).integers(10, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 64
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is not CIFAR-10 for Python, or damaged"):
            originals.cifar10(tmp_path)


def test_celeb_a_hq_is_not_enlarged(tmp_path):
    Image.fromarray(drawn(1, 32, 32)[0]).save(tmp_path / "1.png")
    with pytest.raises(
        InputError, match=r"1\.png is RGB \(32, 32\), not RGB \(64, 64\)"
    ):
        prepare.prepare_original("celeb_a_hq/64", tmp_path, tmp_path / "tfds", QUIET)
