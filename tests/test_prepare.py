"""Sets made of photos and of published files: what is in them, that they are whole, resumed and the same every time."""

import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from raw_files import as_aligned, write_celeb_a
from rich.console import Console
from test_data import data_config, photo

from gamix_jax.data import open_images, prepare, train_batches, writer
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes for training, one for testing, and a file that is no image."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for i in range(150):
        photo(root / f"train/{'ab'[i % 2]}/{i:03}.png", seed=i)
    for i in range(3):
        photo(root / f"test/b/{i}.jpg", seed=200 + i)
    (root / "train/a/bad.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A set made of them in one go."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare.prepare_photos(photos, out, 8, "center", QUIET)
    return out


def test_photos_become_a_set(photos, whole, tmp_path):
    builder = tfds.builder_from_directory(whole)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 150,
        "test": 3,
    }
    assert builder.info.features["image"].shape == (8, 8, 3)
    assert builder.info.features["label"].names == ["a", "b"]
    assert "bad.png" in (whole / "unreadable.txt").read_text()
    assert not (whole / ".prepare").exists()
    shutil.copytree(photos, tmp_path / "good")
    (tmp_path / "good/train/a/bad.png").unlink()
    for split in ("train", "test"):
        folder = opened(tmp_path / "good", split, source="folder")
        stored = opened(whole, split, crop="none")
        np.testing.assert_array_equal(list(stored), list(folder))
        np.testing.assert_array_equal(stored.labels(), folder.labels())


def test_photos_of_a_zip_and_of_a_tar_are_the_same_bytes(photos, whole, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(photos.parent))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos, "./photos")
    made = []
    for name in ("photos.zip", "photos.tar"):
        prepare.prepare_photos(
            tmp_path / name, tmp_path / f"{name}-out", 8, "center", QUIET
        )
        made.append(files(tmp_path / f"{name}-out"))
    assert made[0] == made[1] == files(whole)
    with tarfile.open(tmp_path / "photos.tar") as archive:
        member = archive.getmember("./photos/test/b/1.jpg")
    content = (tmp_path / "photos.tar").read_bytes()
    (tmp_path / "photos.tar").write_bytes(content[: member.offset])
    with pytest.raises(InputError, match="its end is missing"):
        prepare.prepare_photos(
            tmp_path / "photos.tar", tmp_path / "o", 8, "none", QUIET
        )
    assert len(made[0]) == 4  # 151 and 3 photos, at least 64 to a file


def test_preparing_goes_on_where_it_stopped(photos, whole, tmp_path, monkeypatch):
    cut = tmp_path / "cut"
    write = writer._write_shard
    written = []

    def stop_at_the_third(features, path, examples):
        if len(written) == 2:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        written.append(path.name)
        return write(features, path, examples)

    monkeypatch.setattr(writer, "_write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_photos(photos, cut, 8, "center", QUIET)
    with pytest.raises(InputError, match="preparation was interrupted"):
        opened(cut)
    again = []
    monkeypatch.setattr(
        writer,
        "_write_shard",
        lambda *args: again.append(args[1].name) or write(*args),
    )
    prepare.prepare_photos(photos, cut, 8, "center", QUIET)
    # bad.png is the 76th photo, in the second file of 64, which is tried again
    assert set(again) & set(written) == {"photos-train.array_record-00001-of-00003"}
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


def test_a_repaired_photo_is_taken_up(tmp_path):
    """In a set of which no photo could be read at first; a finished set is not changed under its name."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"No image of the train split .*a\.png"):
        prepare.prepare_photos(images, out, 8, "center", QUIET)
    photo(images / "a.png")
    with pytest.raises(InputError, match=r"other images.*delete it"):
        prepare.prepare_photos(images, out, 8, "center", QUIET)
    shutil.rmtree(out)
    prepare.prepare_photos(images, out, 8, "center", QUIET)
    assert len(opened(out, test_split="", test_fraction=0.0)) == 1


def test_a_full_disk_loses_nothing(photos, whole, tmp_path):
    """A limit on the size of files stands for it: array_record reports both in the same way."""
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"File too large.*give it room"):
            prepare.prepare_photos(photos, out, 8, "center", QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    prepare.prepare_photos(photos, out, 8, "center", QUIET)
    assert files(out) == files(whole)


def test_a_set_in_the_home_folder_is_found(whole, monkeypatch):
    monkeypatch.setenv("HOME", str(whole.parent))
    assert len(opened(f"~/{whole.name}")) == len(opened(whole))


def test_the_bar_ends_at_the_number_of_photos(photos, tmp_path, monkeypatch):
    shown = []
    advance = writer.Progress.advance
    monkeypatch.setattr(
        writer.Progress,
        "advance",
        lambda bar, *args: shown.append(bar) or advance(bar, *args),
    )
    prepare.prepare_photos(photos, tmp_path / "out", 8, "center", QUIET)
    (task,) = shown[-1].tasks
    assert (task.completed, task.total) == (154, 154)


def test_odd_names(tmp_path):
    """Not UTF-8, brackets that Rich would take for its own, spaces."""
    images, output = tmp_path / "[red] im", io.StringIO()
    images.mkdir()
    for name in (b"\xff.png", b"[a].png"):
        photo(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", os.path.join(os.fsencode(images), name))
    with open(os.path.join(os.fsencode(images), b"\xfe.png"), "wb") as file:
        file.write(b"no image")
    out = tmp_path / "[blue] out"
    prepare.prepare_photos(images, out, 8, "center", Console(file=output))
    assert len(opened(out, test_split="", test_fraction=0.0)) == 2
    assert f"'--config.data.dir={out}'" in output.getvalue()
    assert b"\xfe.png" in (out / "unreadable.txt").read_bytes()


def test_preparing_refuses_what_it_cannot_do(photos, tmp_path):
    out = tmp_path / "out"
    prepare.prepare_photos(photos / "test", out, 8, "center", QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    (tmp_path / "bad/deep").mkdir(parents=True)
    (tmp_path / "bad/deep/a.png").write_bytes(b"no image")
    (tmp_path / "photos.tar").write_bytes(b"no tar")
    (tmp_path / "file").write_text("")
    (tmp_path / "own/.prepare").mkdir(parents=True)
    (tmp_path / "own/thesis.txt").write_text("mine")
    cases = [
        ("other images, or of another size", photos / "test", out, 4),
        ("other images, or of another size", photos, out, 8),
        ("is not empty", photos, tmp_path / "full", 8),
        ("is not empty", photos, tmp_path / "own", 8),
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
    monkeypatch.setattr(writer, "_example", die)
    with pytest.raises(InputError, match="has died"):
        prepare.prepare_photos(photos / "test", tmp_path / "out", 8, "center", QUIET)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on(photos, whole, tmp_path):
    """Killed as it begins its first file; its processes hold the pipe that is read here until they end."""
    script = f"""
import os, pathlib, signal, sys
sys.path[:0] = {sys.path!r}
from gamix_jax.data import prepare, writer
from test_prepare import QUIET

def killed(features, path, examples):
    next(examples)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    writer._write_shard = killed
    paths = (pathlib.Path(path) for path in {(str(photos), str(tmp_path / "out"))!r})
    prepare.prepare_photos(*paths, 8, "center", QUIET)
"""
    (tmp_path / "run.py").write_text(script)
    result = subprocess.run(
        [sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, timeout=60
    )
    assert result.returncode == -signal.SIGKILL
    prepare.prepare_photos(photos, tmp_path / "out", 8, "center", QUIET)
    assert files(tmp_path / "out") == files(whole)


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
    grey = [
        opened(tmp_path, **config, channels=1).read(np.arange(5)) for config in configs
    ]
    for other in grey[1:]:
        np.testing.assert_array_equal(other, grey[0])


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
