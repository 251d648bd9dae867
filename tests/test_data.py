"""Sources, labels, memory, and what is done to each image."""

import re
import struct
import types
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageMode, ImageOps
from sklearn.datasets import load_digits

from gamix_jax.config import default_config
from gamix_jax.data import evaluation_batches, fit_image, open_images, train_batches
from gamix_jax.data.photos import decode_photo
from gamix_jax.errors import InputError


def data_config(**overrides):
    data = default_config().data
    data.update(overrides)
    return data


def photo(path, width=12, height=8, color=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if color is None:
        pixels = np.random.default_rng(seed).integers(
            0, 256, (height, width, 3), dtype=np.uint8
        )
    else:
        pixels = np.full((height, width, 3), color, np.uint8)
    Image.fromarray(pixels).save(path)


# Sources


def test_digits():
    train, test = (open_images(data_config(), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1617, 180)  # a tenth of 1,797 is held out
    assert train[0].shape == (8, 8, 1)
    assert train[0].dtype == np.uint8
    pixels = np.concatenate([np.ravel([train[i] for i in range(100)])])
    assert (pixels.min(), pixels.max()) == (0, 255)
    everything = {test[i].tobytes() for i in range(180)} & {
        train[i].tobytes() for i in range(1617)
    }
    assert not everything


def test_folder_with_train_and_test(tmp_path):
    for i in range(3):
        photo(tmp_path / f"train/{i}.png", color=10 * i)
    photo(tmp_path / "test/deep/er/a.JPEG", color=200)
    (tmp_path / "train/notes.txt").write_text("no image")
    config = data_config(source="folder", dir=str(tmp_path), size=4, channels=3)
    train, test = (open_images(config, split) for split in ("train", "test"))
    assert [train[i][0, 0, 0] for i in range(len(train))] == [0, 10, 20]
    assert len(test) == 1
    assert test[0].shape == (4, 4, 3)


@pytest.mark.parametrize("below", ["", "train"])
def test_folder_without_test_holds_a_fraction_out(tmp_path, below):
    for i in range(20):
        photo(tmp_path / below / f"{i:02}.png", color=i)
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.2)
    levels = {
        split: [int(image[0, 0, 0]) for image in open_images(config, split)]
        for split in ("train", "test")
    }
    assert [len(levels[split]) for split in ("train", "test")] == [16, 4]
    assert sorted(levels["train"] + levels["test"]) == list(range(20))
    assert levels["test"] == [
        int(image[0, 0, 0]) for image in open_images(config, "test")
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".WEBP"])
def test_folder_reads(tmp_path, suffix):
    photo(tmp_path / f"a{suffix}", color=100)
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    np.testing.assert_allclose(open_images(config, "train")[0], 100, atol=1)  # lossy


def test_folder_follows_links_but_not_round_and_round(tmp_path):
    photo(tmp_path / "elsewhere/a.png")
    (tmp_path / "photos").mkdir()
    for split in ("train", "test"):
        (tmp_path / "photos" / split).symlink_to(tmp_path / "elsewhere")
    for name in ("up", "again"):
        (tmp_path / "elsewhere" / name).symlink_to(tmp_path / "photos")
    config = data_config(source="folder", dir=str(tmp_path / "photos"))
    assert [len(open_images(config, split)) for split in ("train", "test")] == [1, 1]


def test_links_that_lead_nowhere_are_unreadable(tmp_path):
    for i in range(3):
        photo(tmp_path / f"{i}.png", 4, 4, seed=i)
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    config.max_bad_fraction = 0.5
    images = open_images(config, "train")
    assert len(list(images)) == 5
    assert [
        x.split(" is a link that leads nowhere")[0] for x in images.unreadable.values()
    ] == [str(tmp_path / name) for name in ("dead.png", "self.png")]


def test_folder_leaves_hidden_files_out(tmp_path):
    photo(tmp_path / "b.png")
    for name in ("._a.png", ".cache/a.png", "__MACOSX/a.png"):
        photo(tmp_path / name)
    config = data_config(source="folder", dir=str(tmp_path), test_fraction=0.0)
    assert len(open_images(config, "train")) == 1


def test_folder_labels_are_its_subfolders(tmp_path):
    """Places in the alphabet of the classes of both splits; a folder around all counts for nothing."""
    for name in ("train/b/1", "train/a/x/2", "train/c/3", "test/d/4", "test/b/5"):
        photo(tmp_path / f"around/{name}.png")
    config = data_config(source="folder", dir=str(tmp_path))
    train, test = (open_images(config, split) for split in ("train", "test"))
    assert train.labels().tolist() == [0, 1, 2]  # train/a, train/b, train/c
    assert test.labels().tolist() == [1, 3]  # test/b, test/d
    photo(tmp_path / "around/train/stray.png")
    assert open_images(config, "train").labels() is None


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), ["train", "test"]),
        (("train", "val"), ["train", "val"]),
        (("bus", "car", "train"), ["train"]),  # classes, one of them of trains
        (("around/train", "around/test"), ["train", "test"]),
        (("train",), ["train"]),
    ],
)
def test_which_folders_are_splits(tmp_path, folders, splits):
    for folder in folders:
        photo(tmp_path / folder / "a.png")
    config = data_config(source="folder", dir=str(tmp_path), test_fraction=0.0)
    source = open_images(config, "train")._source
    assert list(source.splits) == splits
    assert len(source) == (len(folders) if splits == ["train"] else 1)


@pytest.mark.parametrize(
    "names",
    [
        ("train/a.png", "test/a.png", "preview.png"),
        ("train/a.png", "test/a.png", "unlabeled/a.png"),
        ("faces/train/a.png", "faces/test/a.png", "preview.png"),
        ("train/a.png", "val/a.png", "preview.png"),
        ("Train/a.png", "Test/a.png"),
        ("bus/train/a.png", "bus/test/a.png", "car/train/a.png"),
    ],
)
def test_test_images_do_not_become_training_images(tmp_path, names):
    """By what lies beside or around them, or by a capital letter."""
    for path in names:
        photo(tmp_path / path)
    config = data_config(source="folder", dir=str(tmp_path), test_fraction=0.5)
    with pytest.raises(InputError, match="that cannot be its splits"):
        open_images(config, "train")


def test_digits_without_their_file(tmp_path, monkeypatch):
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    with pytest.raises(InputError, match="is missing; install scikit-learn again"):
        open_images(data_config(), "train")


def test_digits_labels():
    images = [open_images(data_config(), split) for split in ("train", "test")]
    labels = np.concatenate([split.labels() for split in images])
    digits = load_digits()
    expected = dict(
        zip(
            map(bytes, np.rint(digits.images * (255 / 16)).astype(np.uint8)),
            digits.target,
            strict=True,
        )
    )
    found = [image.tobytes() for split in images for image in split]
    assert [expected[image] for image in found] == labels.tolist()


def arrays(shape=(5, 4, 4)):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 4, 4, 1), (5, 4, 4, 3), (5, 4, 4, 4)])
def test_array(tmp_path, shape):
    images, path = arrays(shape), tmp_path / "images.npz"
    channels = 1 if shape[3:] in ((), (1,)) else 3
    config = data_config(source="array", dir=str(path), size=4, channels=channels)
    np.savez(path, train_images=images, test_images=images[:2], test_labels=[7, 9])
    train, test = (open_images(config, split) for split in ("train", "test"))
    expected = images.reshape(5, 4, 4, -1)[..., :channels]  # alpha is left out
    np.testing.assert_array_equal(train.read(np.arange(5)), expected)
    np.testing.assert_array_equal(test.read(np.arange(2)), expected[:2])
    assert train.labels() is None
    assert test.labels().tolist() == [7, 9]


def test_array_without_test_holds_a_fraction_out(tmp_path):
    labels = np.arange(10)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None], (10, 4, 4))
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", train_images=images, train_labels=labels)
    for file in ("images.npy", "images.npz"):
        config = data_config(
            source="array", dir=str(tmp_path / file), size=4, test_fraction=0.3
        )
        train, test = (open_images(config, split) for split in ("train", "test"))
        levels = [[image[0, 0, 0] for image in split] for split in (train, test)]
        assert [len(split) for split in levels] == [7, 3]
        assert sorted(sum(levels, [])) == list(range(10))
        if file.endswith("npz"):
            assert [train.labels().tolist(), test.labels().tolist()] == levels


def test_a_small_set_is_kept_and_a_large_one_is_not(tmp_path):
    photo(tmp_path / "a.png", color=10)
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    kept = open_images(config, "train")
    config.memory_gib = 0.0
    streamed = open_images(config, "train")
    assert [images[0][0, 0, 0] for images in (kept, streamed)] == [10, 10]
    photo(tmp_path / "a.png", color=20)
    assert [images[0][0, 0, 0] for images in (kept, streamed)] == [10, 20]
    assert "kept in memory" in kept.describe(config)
    assert "read anew each time" in streamed.describe(config)


class GamixShapes(tfds.core.GeneratorBasedBuilder):
    """Four drawn images, written and read without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(8, 12, 3))}
        )
        return tfds.core.DatasetInfo(
            builder=self, description="drawn", features=features
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(range(3)),
            "test": self._generate_examples(range(3, 4)),
        }

    def _generate_examples(self, levels):
        for level in levels:
            yield (
                level,
                {"image": Image.fromarray(np.full((8, 12, 3), 50 * level, np.uint8))},
            )


def test_tfds(tmp_path):
    config = data_config(
        source="tfds", name="gamix_shapes", dir=str(tmp_path), size=4, channels=3
    )
    train, test = (open_images(config, split) for split in ("train", "test"))
    assert sorted(int(image[0, 0, 0]) for image in train) == [0, 50, 100]
    assert [image.shape for image in test] == [(4, 4, 3)]
    config.train_split = "train[:2]"
    assert len(open_images(config, "train")) == 2
    for split in ("validation", "train[30:20]"):
        config.train_split = split
        with pytest.raises(InputError, match=re.escape(split)):
            open_images(config, "train")


# Crop and resize


def test_center_crop_keeps_the_middle():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 100  # the centred square
    image = fit_image(Image.fromarray(pixels), 4, 3, "center")
    np.testing.assert_array_equal(image, np.full((4, 4, 3), 100))


def test_celeba_crop_is_the_centred_148():
    """178x218 (width x height): 15 columns left and right, 35 rows above and below."""
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    image = fit_image(Image.fromarray(pixels), 148, 3, "celeba")
    np.testing.assert_array_equal(image, pixels[35:183, 15:163])
    with pytest.raises(InputError, match=r'178x218 pixels, not 8x9.*"center"'):
        fit_image(Image.new("RGB", (8, 9)), 4, 3, "celeba")


def test_what_does_not_fit_is_named(tmp_path):
    photo(tmp_path / "wide.png", width=12, height=8)
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    config.crop = "celeba"
    with pytest.raises(
        InputError, match=r"wide\.png: The crop .celeba. is .* not 12x8"
    ):
        open_images(config, "train")[0]


def test_celeba_hq_is_all_of_a_square():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = fit_image(Image.fromarray(pixels), 6, 3, "celeba_hq")
    np.testing.assert_array_equal(image, pixels)
    with pytest.raises(InputError, match=r'square images, not 8x9 pixels.*"center"'):
        fit_image(Image.new("RGB", (8, 9)), 4, 3, "celeba_hq")


def test_no_crop_squeezes_all_of_it():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 200
    image = fit_image(Image.fromarray(pixels), 4, 3, "none")
    # The ends are there, but for the bicubic filter's overshoot, below a tenth of 200.
    assert image[:, 0].max() < 20
    assert image[:, 3].min() > 180


def test_a_photo_taken_sideways_is_turned(tmp_path):
    """EXIF orientation 6: the camera's top is the picture's right."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 255  # the camera's top row
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        turned = fit_image(image, 4, 3, "center")
    np.testing.assert_array_equal(turned[:, 3], 255)
    assert turned[:, :3].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillow_s(orientation):
    """The oracle is PIL.ImageOps.exif_transpose."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(fit_image(image, 4, 3, "center"), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_harms_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "a camera"
    Image.new("RGB", (4, 4), "white").save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    start, end = whole.index(b"Exif"), whole.index(b"a camera")
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    for place in range(start, end):
        for byte in (0, 0x42, 0xFF):
            damaged = bytearray(whole)
            damaged[place] = byte
            (tmp_path / "a.jpg").write_bytes(damaged)
            image = open_images(config, "train")[0]
            np.testing.assert_array_equal(image, np.full((4, 4, 1), 255))


def test_resize_is_antialiased():
    """A checkerboard of single pixels shrinks to its mean of 127.5, not to one of its two levels."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    image = fit_image(Image.fromarray(board), 8, 1, "center")
    assert image.min() >= 125
    assert image.max() <= 130


WHITE = {"F": 255.0, "I": 255, "HSV": (0, 0, 255), "CMYK": (0, 0, 0, 0)}
WHITE |= {"YCbCr": (255, 128, 128), "LAB": (255, 128, 128)} | dict.fromkeys(
    ["I;16", "I;16L", "I;16B", "I;16N"], 65535
)


@pytest.mark.parametrize(
    "mode", [*Image.MODES, "LA", "La", "PA", "RGBa", "I;16L", "I;16B"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow(mode, channels):
    """White is white; but for the rounding of LAB's 8 bits."""
    bands = len(ImageMode.getmode(mode).bands)
    white = WHITE.get(mode, 255 if bands == 1 else (255,) * bands)
    image = Image.new(mode, (6, 5), white)
    if mode in ("P", "PA"):
        image.putpalette([255] * 768)
    np.testing.assert_allclose(
        fit_image(image, 4, channels, "center"),
        np.full((4, 4, channels), 255),
        atol=mode == "LAB",
    )


@pytest.mark.parametrize(
    "mode", ["CMYK", "HSV", "LAB", "P", "RGBA", "RGBX", "RGBa", "YCbCr"]
)
def test_colours_survive_the_modes_that_have_them(mode):
    """Three colours of full alpha, to within the rounding of two conversions (palette: of 6 levels)."""
    pixels = np.array(
        [[(200, 40, 90), (10, 120, 240)], [(90, 210, 60), (128, 128, 128)]]
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "LAB":  # Pillow cannot make one
        image = Image.new("LAB", (2, 2), (128, 128, 128))
        pixels = np.full((2, 2, 3), 119)  # L* = 128 / 2.55 = 50.2 is grey 119.5 of sRGB
    elif mode == "RGBa":
        image = image.convert("RGBA").convert(mode)
    else:
        image = image.convert(mode)
    # P: 6 levels a channel, 51 apart; HSV: 256 hues for the 6 * 256 of a full circle, so 3
    # of 256 either way and one of rounding; YCbCr: Cb, rounded by 1/2, counts 1.772 times.
    atol = {"P": 26, "HSV": 4, "YCbCr": 2}.get(mode, 1)
    np.testing.assert_allclose(fit_image(image, 2, 3, "center"), pixels, atol=atol)


def test_sixteen_bits_are_scaled_not_clipped():
    image = fit_image(
        Image.fromarray(np.full((4, 4), 257 * 77, np.uint16)), 4, 1, "center"
    )
    np.testing.assert_array_equal(image, np.full((4, 4, 1), 77, np.uint8))


# Bad input


def test_bad_sources_are_refused_in_one_sentence(tmp_path):
    photo(tmp_path / "halved/test/a.png")
    (tmp_path / "empty").mkdir()
    cases = {
        "is no folder": data_config(source="folder", dir=str(tmp_path / "nowhere")),
        "config.data.dir is ''": data_config(source="folder"),
        "config.data.name is empty": data_config(source="tfds"),
        "no folder train": data_config(source="folder", dir=str(tmp_path / "halved")),
        "No JPEG, PNG or WebP": data_config(
            source="folder", dir=str(tmp_path / "empty")
        ),
        "which is no file": data_config(source="array", dir=str(tmp_path)),
        "must be files of this machine": data_config(source="folder", dir="gs://x/y"),
        "is no TFDS data set; for a folder": data_config(
            source="tfds", dir=str(tmp_path / "halved")
        ),
        "TFDS cannot open": data_config(
            source="tfds", name="no_such_set", dir=str(tmp_path)
        ),
    }
    for sentence, config in cases.items():
        with pytest.raises(InputError, match=sentence) as error:
            open_images(config, "train")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "stanford_dogs"])
def test_a_set_that_is_not_prepared_says_how_and_what_else(tmp_path, monkeypatch, name):
    """Without a network: the command, for a set that --mode=prepare knows, and the folder instead."""

    def download_and_prepare(self, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare
    )
    with pytest.raises(InputError) as error:
        open_images(data_config(source="tfds", name=name, dir=str(tmp_path)), "train")
    sentence = str(error.value)
    assert "\n" not in sentence
    assert f"The TFDS data set '{name}' is not in {tmp_path}" in sentence
    assert "--config.data.source=folder --config.data.dir=DIR" in sentence
    command = f"--mode=prepare --dataset=mnist --images=DIR --out={tmp_path}"
    assert (command in sentence) == (name == "mnist")
    assert ("ConnectionError: no network" in sentence) == (name != "mnist")


def test_bad_arrays_are_refused_in_one_sentence(tmp_path):
    def refused(sentence, **saved):
        np.savez(tmp_path / "a.npz", **saved)
        config = data_config(source="array", dir=str(tmp_path / "a.npz"))
        with pytest.raises(InputError, match=sentence) as error:
            open_images(config, "test")
        assert "\n" not in str(error.value)

    images = arrays()
    refused(r"holds x, not train_images", x=images)
    refused(r"float64 \[5, 4, 4\]; they must be uint8", train_images=images / 255)
    refused(r"uint8 \[5, 4\]; they must be", train_images=images[..., 0])
    refused(
        r"uint8 \[5, 2, 2, 2, 2\]; they must be",
        train_images=arrays((5, 2, 2, 2, 2)),
    )
    refused(
        r"labels of int64 \[3\] for 5 images",
        train_images=images,
        train_labels=[1, 2, 3],
    )
    refused("labels of <U1", train_images=images, train_labels=list("abcde"))
    refused(r"test split .* is empty", train_images=images, test_images=images[:0])
    whole = (tmp_path / "a.npz").read_bytes()
    for name, content in (
        ("cut", whole[:200]),
        ("text", b"not an array"),
        ("none", b""),
    ):
        (tmp_path / f"{name}.npz").write_bytes(content)
        config = data_config(source="array", dir=str(tmp_path / f"{name}.npz"))
        with pytest.raises(InputError, match=r"cannot be read as a \.npz or \.npy"):
            open_images(config, "train")


def test_an_empty_split_is_refused(tmp_path):
    photo(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"test split .* is empty"):
        open_images(data_config(source="folder", dir=str(tmp_path)), "test")


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", None, "damaged"],
    ids=["empty", "text", "truncated", "damaged"],
)
def test_an_unreadable_image_is_named(tmp_path, content):
    photo(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    if content is None:
        content = whole[:-40]
    elif content == "damaged":  # Pillow raises SyntaxError, or ValueError
        content = whole.replace(b"IDAT", b"\0DAT")
    (tmp_path / "bad.png").write_bytes(content)
    config = data_config(source="folder", dir=str(tmp_path), size=4, test_fraction=0.0)
    with pytest.raises(InputError, match=r"bad\.png is not a readable image"):
        next(train_batches(open_images(config, "train"), 8, 0, False))


def with_bad_ones(folder, good=18):
    """Photos 00 to 19 of which 03 and 04 are damaged, and the good ones' pixels."""
    for i in range(good + 2):
        photo(folder / f"{i:02}.png", 4, 4, seed=i)
    (folder / "03.png").write_bytes(b"")
    (folder / "04.png").write_bytes((folder / "05.png").read_bytes()[:-40])
    return {
        i: np.asarray(Image.open(folder / f"{i:02}.png"))
        for i in range(good + 2)
        if i not in (3, 4)
    }


@pytest.mark.parametrize("memory", [0.0, 2.0])
def test_unreadable_images_are_left_out_and_named(tmp_path, memory):
    pixels = with_bad_ones(tmp_path)
    config = data_config(
        source="folder",
        dir=str(tmp_path),
        size=4,
        channels=3,
        test_fraction=0.0,
        memory_gib=memory,
        max_bad_fraction=0.1,
    )
    images = open_images(config, "train")
    for _ in range(2):
        for i in range(20):
            expected = pixels[{3: 5, 4: 5}.get(i, i)]  # the next that is good
            np.testing.assert_array_equal(images[i], expected)
    assert sorted(images.unreadable) == [3, 4]
    for index in (3, 4):
        sentence = images.unreadable[index]
        assert f"0{index}.png is not a readable image" in sentence
    np.testing.assert_array_equal(
        images.is_unreadable(np.array([4, 0, 3])), [True, False, True]
    )
    # In evaluation what stands in for them does not count.
    batches = list(evaluation_batches(images, 8))
    indices = np.concatenate([batch["index"] for batch in batches])
    assert sorted(indices) == [-1] * 6 + [i for i in range(20) if i not in (3, 4)]


def test_more_unreadable_images_than_allowed_end_the_run(tmp_path):
    with_bad_ones(tmp_path)
    config = data_config(
        source="folder", dir=str(tmp_path), size=4, channels=3, test_fraction=0.0
    )
    config.max_bad_fraction = 0.09  # of 20: one
    images = open_images(config, "train")
    images[4]
    with pytest.raises(
        InputError,
        match=r"2 of the 20 .*max_bad_fraction=0\.09 allows 1; .*03\.png is not a readable",
    ):
        images[3]


def test_a_decompression_bomb_is_unreadable(tmp_path):
    """A PNG of 40,000x40,000 pixels, 1.6 GB unpacked, in 3 kB: its header is refused."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)

    def chunk(kind, content):
        body = kind + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match=r"bomb\.png .*exceeds limit .* pixels"):
        decode_photo((tmp_path / "bomb.png").read_bytes(), "bomb.png")


def test_odd_but_whole_images_are_used(tmp_path):
    """CMYK, 16 bits, animated, a palette, one pixel: none is unreadable."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (8, 8), np.uint16)).save(
        tmp_path / "sixteen.png"
    )
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    rgb.save(tmp_path / "animated.png", **frames)
    rgb.save(tmp_path / "animated.webp", **frames)
    rgb.quantize(16).save(tmp_path / "palette.png")
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "pixel.png")
    config = data_config(
        source="folder", dir=str(tmp_path), size=8, channels=3, test_fraction=0.0
    )
    images = open_images(config, "train")
    by_name = dict(zip(sorted(p.name for p in tmp_path.iterdir()), images, strict=True))
    assert len(by_name) == 6
    assert not images.unreadable
    # The first frame, and the one pixel everywhere
    np.testing.assert_array_equal(by_name["animated.png"], rgb)
    assert (by_name["pixel.png"] == (10, 20, 30)).all()
