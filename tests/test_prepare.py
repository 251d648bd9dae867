"""Sets made of photos and of published files: what is in them, that they are whole, resumed and the same every time."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
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
from rich.console import Console
from test_data import data_config, photo

from gamix_jax.data import open_images, prepare, train_batches
from gamix_jax.errors import InputError

QUIET = Console(file=io.StringIO())


def drawn(count, height, width, seed=0):
    """Smooth uint8 images in colour, so that JPEG hurts them little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [
        np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        )
        for image in coarse
    ]


def files(folder):
    """The content of every record file."""
    return {path.name: path.read_bytes() for path in folder.glob("*array_record*")}


def opened(folder, split="train", **config):
    config = {"source": "tfds", "dir": str(folder), "size": 8, "channels": 3} | config
    return open_images(data_config(**config), split)


@pytest.fixture
def photos(tmp_path):
    """Two classes for training, one for testing, and a file that is no image."""
    root = tmp_path / "photos"
    for i in range(150):
        photo(root / f"train/{'ab'[i % 2]}/{i:03}.png", seed=i)
    for i in range(3):
        photo(root / f"test/b/{i}.jpg", seed=200 + i)
    (root / "train/a/bad.png").write_bytes(b"no image")
    return root


def test_photos_become_a_set(photos, tmp_path):
    out = tmp_path / "out"
    prepare.prepare_photos(photos, out, 8, "center", QUIET)
    builder = tfds.builder_from_directory(out)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 150,
        "test": 3,
    }
    assert builder.info.features["image"].shape == (8, 8, 3)
    assert builder.info.features["label"].names == ["a", "b"]
    assert "bad.png" in (out / "unreadable.txt").read_text()
    assert not (out / "progress").exists()
    (photos / "train/a/bad.png").unlink()
    for split in ("train", "test"):
        folder = opened(photos, split, source="folder")
        stored = opened(out, split, crop="none")
        np.testing.assert_array_equal(list(stored), list(folder))
        np.testing.assert_array_equal(stored.labels(), folder.labels())


def test_photos_of_a_zip_and_of_a_tar_are_the_same_bytes(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, "./photos")
    made = []
    for name in ("photos", "photos.zip", "photos.tar"):
        prepare.prepare_photos(
            tmp_path / name, tmp_path / f"{name}-out", 8, "none", QUIET
        )
        made.append(files(tmp_path / f"{name}-out"))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 4  # 151 and 3 photos, at least 64 to a file


def test_preparing_goes_on_where_it_stopped(photos, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prepare.prepare_photos(photos, whole, 8, "center", QUIET)
    write = prepare._write_shard
    written = []

    def stop_at_the_third(features, path, examples):
        if len(written) == 2:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        written.append(path.name)
        return write(features, path, examples)

    monkeypatch.setattr(prepare, "_write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_photos(photos, cut, 8, "center", QUIET)
    with pytest.raises(InputError, match="cannot open"):
        opened(cut)
    again = []
    monkeypatch.setattr(
        prepare,
        "_write_shard",
        lambda *args: again.append(args[1].name) or write(*args),
    )
    prepare.prepare_photos(photos, cut, 8, "center", QUIET)
    assert not set(again) & set(written)
    assert files(cut) == files(whole)
    assert (cut / "unreadable.txt").read_text() == (
        whole / "unreadable.txt"
    ).read_text()
    assert (cut / "dataset_info.json").read_text() == (
        whole / "dataset_info.json"
    ).read_text()
    again.clear()
    prepare.prepare_photos(photos, cut, 8, "center", QUIET)
    assert not again


def test_preparing_refuses_what_it_cannot_do(photos, tmp_path):
    out = tmp_path / "out"
    prepare.prepare_photos(photos / "test", out, 8, "center", QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    (tmp_path / "bad/deep").mkdir(parents=True)
    (tmp_path / "bad/deep/a.png").write_bytes(b"no image")
    (tmp_path / "photos.tar").write_bytes(b"no tar")
    (tmp_path / "file").write_text("")
    cases = [
        ("other images, or of another size", photos / "test", out, 4),
        ("other images, or of another size", photos, out, 8),
        ("is not empty", photos, tmp_path / "full", 8),
        (
            "No image of the train split could be read",
            tmp_path / "bad",
            tmp_path / "n",
            8,
        ),
        ("cannot be read as a folder, a zip or a tar", tmp_path / "photos.tar", out, 8),
        ("does not exist", tmp_path / "nowhere", out, 8),
        ("cannot be written to", photos, tmp_path / "file" / "out", 8),
    ]
    for sentence, images, to, size in cases:
        with pytest.raises(InputError, match=sentence) as error:
            prepare.prepare_photos(images, to, size, "center", QUIET)
        assert "\n" not in str(error.value)
    assert opened(out, test_split="", test_fraction=0.4, crop="none").shape[0] == 2


def die(item):
    os._exit(1)


def test_a_dead_process_does_not_hang(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_example", die)
    with pytest.raises(InputError, match="has died"):
        prepare.prepare_photos(photos / "test", tmp_path / "out", 8, "center", QUIET)


def test_a_killed_run_leaves_no_process_and_goes_on(photos, tmp_path):
    """Killed as it begins its first file; its processes hold the pipe that is read here until they end."""
    script = f"""
import os, pathlib, signal, sys
sys.path[:0] = {sys.path!r}
from gamix_jax.data import prepare
from test_prepare import QUIET

def killed(features, path, examples):
    next(examples)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    prepare._write_shard = killed
    paths = (pathlib.Path(path) for path in {(str(photos), str(tmp_path / "out"))!r})
    prepare.prepare_photos(*paths, 8, "center", QUIET)
"""
    (tmp_path / "run.py").write_text(script)
    result = subprocess.run(
        [sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, timeout=60
    )
    assert result.returncode == -signal.SIGKILL
    prepare.prepare_photos(photos, tmp_path / "out", 8, "center", QUIET)
    prepare.prepare_photos(photos, tmp_path / "whole", 8, "center", QUIET)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_same_faces_by_every_source(tmp_path):
    """CelebA's files in a folder, an array, the TFDS set celeb_a, and prepared at the size: the same batches."""
    faces = [as_aligned(face) for face in drawn(8, 16, 16)]
    splits = {"train": faces[:5], "validation": faces[5:6], "test": faces[6:]}
    write_celeb_a(tmp_path / "raw", splits)
    jpegs = {}
    with zipfile.ZipFile(tmp_path / "raw/img_align_celeba.zip") as archive:
        for i, name in enumerate(sorted(archive.namelist())):
            split = "train" if i < 5 else "test"
            path = tmp_path / "folder" / split / os.path.basename(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if i != 5:  # validation
                path.write_bytes(archive.read(name))
                with Image.open(path) as image:
                    jpegs.setdefault(f"{split}_images", []).append(np.asarray(image))
    np.savez(tmp_path / "faces.npz", **jpegs)
    prepare.prepare_original("celeb_a", tmp_path / "raw", tmp_path / "tfds", QUIET)
    prepare.prepare_photos(tmp_path / "folder", tmp_path / "small", 8, "celeba", QUIET)
    configs = (
        {"source": "folder", "dir": str(tmp_path / "folder"), "crop": "celeba"},
        {"source": "array", "dir": str(tmp_path / "faces.npz"), "crop": "celeba"},
        {"dir": str(tmp_path / "tfds"), "name": "celeb_a", "crop": "celeba"},
        {"dir": str(tmp_path / "small"), "crop": "none"},
    )
    batches = []
    for config in configs:
        assert len(opened(tmp_path, "test", **config)) == 2
        order = train_batches(opened(tmp_path, **config), 4, 3, True)
        batches.append([next(order) for _ in range(5)])
    for other in batches[1:]:
        np.testing.assert_array_equal(other, batches[0])


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
    refused("cifar-10-python.tar.gz is not the CIFAR-10", "cifar10")
    write_celeb_a(tmp_path, faces)
    for file, sentence in (
        ("list_attr_celeba.txt", "list_attr_celeba.txt lacks 000001.jpg"),
        ("list_eval_partition.txt", "names no image to train on"),
    ):
        (tmp_path / file).write_text("1\nx y\n" if "attr" in file else "")
        refused(sentence, "celeb_a")
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


def test_an_unprepared_set_says_what_to_fetch(tmp_path, monkeypatch):
    """Before anything is downloaded, where TensorFlow is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, sentence in {
        "celeb_a": r"img_align_celeba\.zip .*--mode=prepare --dataset=celeb_a ",
        "celeb_a_hq/256": r"data256x256\.tar .*--dataset=celeb_a_hq/256 ",
        "mnist": r"train-images-idx3-ubyte\.gz.*--dataset=mnist ",
        "cifar10": r"cifar-10-python\.tar\.gz.*--dataset=cifar10 ",
    }.items():
        with pytest.raises(InputError, match=sentence) as error:
            opened(tmp_path, name=name)
        assert "gamix-jax[prepare]" in str(error.value)
        assert "config.data.source=folder" in str(error.value)


def test_a_set_without_random_access_is_refused(photos, tmp_path):
    out = tmp_path / "out"
    prepare.prepare_photos(photos / "test", out, 8, "center", QUIET)
    info = json.loads((out / "dataset_info.json").read_text())
    (out / "dataset_info.json").write_text(
        json.dumps(info | {"fileFormat": "tfrecord"})
    )
    with pytest.raises(InputError, match="is stored as tfrecord, which has no random"):
        opened(out, test_split="")


def test_an_unreadable_record_is_named(photos, tmp_path):
    out = tmp_path / "out"
    prepare.prepare_photos(photos / "test", out, 8, "center", QUIET)
    (path,) = out.glob("*array_record*")
    content = bytearray(path.read_bytes())
    at = content.index(b"IHDR")
    content[at : at + 4] = b"XXXX"
    path.write_bytes(content)
    images = opened(out, test_split="", test_fraction=0.0)
    with pytest.raises(InputError, match=r"Record \d of the TFDS data set .*out"):
        list(images)
