"""Writes images in the files in which MNIST, CIFAR-10, CelebA and CelebA-HQ are given out.

As a script, from MNIST, a CIFAR-10 subset and faces stored as mnist.npz, cifar10.npz and
faces_128.tar in one folder:

    python tests/raw_files.py DATA OUT
    for set in mnist cifar10 celeb_a; do
      python -m gamix_jax.main --mode=prepare --dataset=$set --images=OUT/$set --out=OUT/tfds
    done
    python -m gamix_jax.main --config=configs/mnist.py --config.data.dir=OUT/tfds --workdir=DIR
"""

import gzip
import io
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels, file_format="PNG"):
    """A file's content of uint8 [H, W, 3] or [H, W]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, quality=95)
    return file.getvalue()


def _add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_mnist(directory, splits):
    """The four files of MNIST from {"train" and "test": (uint8 [N, 28, 28], labels)}."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape)
            content = gzip.compress(head + array.astype(np.uint8).tobytes(), 1)
            (directory / f"{stem}-{name}-ubyte.gz").write_bytes(content)


def write_cifar10(directory, splits):
    """cifar-10-python.tar.gz from {"train" and "test": (uint8 [N, 32, 32, 3], labels)}."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {"batches.meta": {b"label_names": [b"class %d" % i for i in range(10)]}}
    for split, count in (("train", 5), ("test", 1)):
        images, labels = splits[split]
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        for i, block in enumerate(np.array_split(np.arange(len(rows)), count), 1):
            name = f"data_batch_{i}" if split == "train" else "test_batch"
            files[name] = {b"data": rows[block], b"labels": labels[block].tolist()}
    with tarfile.open(directory / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            _add(archive, f"cifar-10-batches-py/{name}", pickle.dumps(content, 3))


def write_celeb_a(directory, splits, annotations=True):
    """img_align_celeba.zip and the lists from {"train", "validation" and "test": [uint8 [218, 178, 3]]}.

    The annotations are made up: image i has attribute k where i + k is even, landmark k
    at i + k, identity i.
    """
    from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

    directory.mkdir(parents=True, exist_ok=True)
    partition, names = "", []
    with zipfile.ZipFile(directory / "img_align_celeba.zip", "w") as archive:
        for number, split in enumerate(("train", "validation", "test")):
            for pixels in splits[split]:
                names.append(f"{len(names) + 1:06d}.jpg")
                archive.writestr(
                    f"img_align_celeba/{names[-1]}", encode(pixels, "JPEG")
                )
                partition += f"{names[-1]} {number}\n"
    (directory / "list_eval_partition.txt").write_text(partition)
    if not annotations:
        return
    for file, headings, value in (
        ("list_attr_celeba.txt", celeb_a.ATTR_HEADINGS, lambda s: 1 - 2 * (s % 2)),
        ("list_landmarks_align_celeba.txt", celeb_a.LANDMARK_HEADINGS, lambda s: s),
    ):
        rows = [
            " ".join([name, *(str(value(i + k)) for k in range(len(headings)))])
            for i, name in enumerate(names)
        ]
        lines = [str(len(names)), " ".join(headings), *rows]
        (directory / file).write_text("\n".join(lines) + "\n")
    lines = [f"{name} {i}" for i, name in enumerate(names)]
    (directory / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")


def write_celeb_a_hq(directory, images):
    """data256x256.tar of square images."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(directory / "data256x256.tar", "w") as archive:
        for i, pixels in enumerate(images):
            _add(archive, f"data256x256/{i:05d}.png", encode(pixels))


def as_aligned(face):
    """A face of any size as a CelebA image: 178x218, of which the centred 148x148 is the face, its border drawn out."""
    image = Image.fromarray(face).resize((148, 148), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(image), ((35, 35), (15, 15), (0, 0)), mode="edge")


def main(data, out):
    for name, write in (("mnist", write_mnist), ("cifar10", write_cifar10)):
        with np.load(data / f"{name}.npz") as arrays:
            splits = {
                split: (arrays[f"{split}_images"], arrays[f"{split}_labels"])
                for split in ("train", "test")
            }
        write(out / name, splits)
    faces = {"train": [], "validation": [], "test": []}
    with tarfile.open(data / "faces_128.tar") as archive:
        for member in sorted(archive, key=lambda member: member.name):
            if member.isfile():
                split = member.name.split("/")[1]
                face = np.asarray(Image.open(archive.extractfile(member)))
                faces[split].append(as_aligned(face))
    write_celeb_a(out / "celeb_a", faces)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
