"""Photos in a folder, a zip or a tar: their names in one order, their content, their splits and classes."""

import collections
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from gamix_jax.errors import InputError


class UnreadableImageError(InputError):
    """A file's content is no image, or a damaged one, or it is a link that leads nowhere."""


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def is_photo(name: str) -> bool:
    """Whether a relative path is that of a JPEG, PNG or WebP file, and no hidden one, nor a Mac's shadow of one."""
    parts = name.removeprefix("./").split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return name.lower().endswith(SUFFIXES) and not hidden


class Photos(Protocol):
    """Files by relative path, random access; can be pickled."""

    names: Sequence[str]  # of the photos, sorted, parts divided by "/"

    def read(self, name: str) -> bytes:
        """The file's content."""

    def size(self, name: str) -> int:
        """Of the file, bytes."""


class FolderPhotos:
    """The photos anywhere below a folder; links are followed."""

    def __init__(self, root: Path):
        self._root = str(root)
        paths = (os.path.relpath(path, self._root) for path in _files(self._root, ()))
        self.names = sorted(
            name for path in paths if is_photo(name := path.replace(os.sep, "/"))
        )

    def read(self, name: str) -> bytes:
        return Path(self._root, name).read_bytes()

    def size(self, name: str) -> int:
        return os.path.getsize(os.path.join(self._root, name))


def _files(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """All files below, but for those below a link to one of the folders above it."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            # A link that leads nowhere, or to itself, is found when it is read.
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield entry.path
            elif entry.is_dir():
                yield from _files(entry.path, (*above, real))
            elif entry.is_file():
                yield entry.path


class ZipPhotos:
    """The photos in a zip."""

    def __init__(self, path: Path):
        self._path, self._archive = path, zipfile.ZipFile(path)
        self.names = sorted(filter(is_photo, self._archive.namelist()))

    def read(self, name: str) -> bytes:
        return self._archive.read(name)

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size

    def __reduce__(self) -> tuple:
        """An open file cannot be pickled."""
        return ZipPhotos, (self._path,)


class TarPhotos:
    """The photos in a tar that is not compressed, read at their offsets."""

    def __init__(self, path: Path):
        self._path = str(path)
        self._places: dict[str, tuple[int, int]] = {}
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    self._places[member.name] = (member.offset_data, member.size)
                elif member.islnk():  # a second name
                    self._places[member.name] = self._places[member.linkname]
        with open(
            path, "rb"
        ) as file:  # tarfile takes one that is cut off for a whole one
            file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
            if file.read() != bytes(1024):
                raise tarfile.ReadError("its end is missing")
        self.names = sorted(filter(is_photo, self._places))

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(self, name: str) -> int:
        return self._places[name][1]


def open_photos(path: Path) -> Photos:
    """The photos at a path.

    Args:
      path: a folder, a .zip, or a .tar without compression.

    Raises:
      InputError: nothing is there, it is none of these, it is damaged, or holds no
        JPEG, PNG or WebP file.
    """
    try:
        if path.is_dir():
            photos = FolderPhotos(path)
        elif zipfile.is_zipfile(path):
            photos = ZipPhotos(path)
        elif path.is_file():
            photos = TarPhotos(path)
        else:
            raise InputError(
                f"{path} does not exist; name a folder, a zip or a tar of images."
            )
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a folder, a zip or a tar of images ({error}); "
            "fetch it again if it is damaged, unpack it if it is a compressed tar."
        ) from error
    if not photos.names:
        raise InputError(
            f"No JPEG, PNG or WebP image lies in {path}; name a folder that holds some."
        )
    return photos


def decode_photo(content: bytes, name: object) -> Image.Image:
    """The image in a file's content.

    Raises:
      UnreadableImageError: it is damaged or no image, with `name` in the sentence.
    """
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except MemoryError:
        raise  # no fault of the image's
    except Exception as error:  # damaged files make Pillow raise anything
        unknown = isinstance(error, UnidentifiedImageError)
        told = " ".join(str(error).split()) or type(error).__name__
        cause = "of no format that Pillow knows" if unknown else told
        raise UnreadableImageError(
            f"{name} is not a readable image ({cause}); repair or remove it."
        ) from error
    return image


# Folders by these names are splits, where one of them is called train.
SPLITS = ("train", "test", "val", "valid", "validation")


def divide(
    names: Sequence[str], where: object
) -> dict[str, list[tuple[str, str | None]]]:
    """The photos of each split, which are the folders called as in SPLITS, or else all as "train"; each with its class.

    The class is the folder that a photo lies in below its split's, None for one that
    lies in none. A folder that holds all else, as archives often have one, does not
    count; nor are folders splits that have others beside them, which are then classes.

    Raises:
      InputError: there are a folder test and others of SPLITS, but none called train; or
        a folder train and others of SPLITS that cannot be splits, so that what is to be
        held out would be trained on.
    """
    base = ""
    while True:
        tops = {name[len(base) :].split("/")[0] for name in names}
        if len(tops) > 1 or tops & {"train", "test"} or base + min(tops) in names:
            break
        base += min(tops) + "/"
    divided = tops <= set(SPLITS)
    if divided and "test" in tops and "train" not in tops:
        raise InputError(
            f"{where} has a folder test but no folder train; add one, or name a folder "
            "without either."
        )
    for around, children in _folders(names).items():
        found = [child for child in children if child.lower() in SPLITS]
        held_out = len(found) > 1 and "train" in map(str.lower, found)
        if held_out and not (divided and around == base):
            raise InputError(
                f"{where} has folders {' and '.join(found)} that cannot be its splits; see to it "
                "that they are called train and test, with nothing else beside them or "
                "around them, or rename them if they are classes."
            )
    folders = {"train": base}
    if divided and "train" in tops:
        folders = {split: f"{base}{split}/" for split in SPLITS if split in tops}
    return {
        split: [
            (name, name[len(folder) :].rpartition("/")[0].split("/")[0] or None)
            for name in names
            if name.startswith(folder)
        ]
        for split, folder in folders.items()
    }


def _folders(names: Sequence[str]) -> dict[str, list[str]]:
    """The folders within each, which is named with "/" at its end, or "" for the whole; in alphabetical order."""
    folders = {name.rpartition("/")[0] for name in names}
    within = collections.defaultdict(set)
    for folder in folders:
        parts = folder.split("/") if folder else []
        for i, part in enumerate(parts):
            within["".join(f"{above}/" for above in parts[:i])].add(part)
    return {around: sorted(children) for around, children in within.items()}


def class_names(splits: dict[str, list[tuple[str, str | None]]]) -> list[str]:
    """The classes of what `divide` made, in alphabetical order; none unless every photo has one."""
    names = {name for photos in splits.values() for _, name in photos}
    return [] if None in names else sorted(names)
