"""Sources, order, position and the crop."""

from collections import Counter

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gamix_jax.config import default_config
from gamix_jax.data import evaluation_batches, fit_image, open_images, train_batches
from gamix_jax.errors import InputError


def data_config(**overrides):
    data = default_config().data
    data.update(overrides)
    return data


def numbered(count=10):
    """Images whose every pixel is their number, but for a mark in the upper left corner."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1)
    ).copy()
    images[:, 0, 0] = 255
    return grain.MapDataset.source(images)


def numbers(batch):
    return batch[:, 1, 1, 0].tolist()


def take(batches, count):
    return [numbers(next(batches)) for _ in range(count)]


def photo(path, width=12, height=8, color=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    if color is None:
        pixels = np.random.default_rng(seed).integers(
            0, 256, (height, width, 3), dtype=np.uint8
        )
    else:
        pixels = np.full((height, width, 3), color, np.uint8)
    Image.fromarray(pixels).save(path)


# Order


def test_every_image_once_an_epoch_and_another_order_each_time():
    order = sum(take(train_batches(numbered(), 4, seed=0, flip=False), 15), [])
    epochs = [order[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert order == sum(take(train_batches(numbered(), 4, seed=0, flip=False), 15), [])
    assert order != sum(take(train_batches(numbered(), 4, seed=1, flip=False), 15), [])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_take_blocks_of_the_same_global_batches(count):
    whole = take(train_batches(numbered(), 8, seed=3, flip=False), 10)
    shares = [
        take(train_batches(numbered(), 8, 3, False, process, count), 10)
        for process in range(count)
    ]
    assert [sum(blocks, []) for blocks in zip(*shares, strict=True)] == whole


def test_position_goes_on_where_it_was():
    batches = train_batches(numbered(), 4, seed=0, flip=True)
    for _ in range(3):
        next(batches)
    position = batches.get_state()
    expected = [next(batches) for _ in range(5)]
    again = train_batches(numbered(), 4, seed=0, flip=True)
    again.set_state(position)
    np.testing.assert_array_equal([next(again) for _ in range(5)], expected)


def test_flip_mirrors_half_of_the_images_left_to_right():
    batches = train_batches(numbered(), 100, seed=0, flip=True)
    images = np.concatenate([next(batches) for _ in range(20)])
    mirrored = np.sum(images[:, 0, 1, 0] == 255)
    assert mirrored + np.sum(images[:, 0, 0, 0] == 255) == 2000
    assert abs(mirrored - 1000) < 4 * np.sqrt(
        2000 / 4
    )  # four standard errors of a fair coin
    again = [next(train_batches(numbered(), 4, 0, False))[:, 0, 0, 0] for _ in range(2)]
    assert np.all(np.array(again) == 255)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_covers_every_image_once(processes):
    seen = Counter()
    for process in range(processes):
        for batch in evaluation_batches(numbered(), 4, process, processes):
            assert batch["image"].shape == (4 // processes, 2, 2, 1)
            assert batch["index"].dtype == np.int32
            real = batch["index"] >= 0
            assert numbers(batch["image"][real]) == batch["index"][real].tolist()
            seen.update(batch["index"].tolist())
    assert seen == Counter({**dict.fromkeys(range(10), 1), -1: 2})


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
    config.train_split = "validation"
    with pytest.raises(InputError, match="validation"):
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
    with pytest.raises(
        InputError, match=r'178x218 pixels, not 8x9.*config\.data\.crop="center"'
    ):
        fit_image(Image.new("RGB", (8, 9)), 4, 3, "celeba")


def test_resize_is_antialiased():
    """A checkerboard of single pixels shrinks to its mean of 127.5, not to one of its two levels."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    image = fit_image(Image.fromarray(board), 8, 1, "center")
    assert image.min() >= 125
    assert image.max() <= 130


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_of_jpeg_and_png(mode, channels):
    image = fit_image(
        Image.new("RGB", (6, 5), "white").convert(mode), 4, channels, "center"
    )
    np.testing.assert_array_equal(image, np.full((4, 4, channels), 255, np.uint8))


def test_sixteen_bits_are_scaled_not_clipped():
    image = fit_image(
        Image.fromarray(np.full((4, 4), 257 * 77, np.uint16)), 4, 1, "center"
    )
    np.testing.assert_array_equal(image, np.full((4, 4, 1), 77, np.uint8))


# Bad input


def test_bad_sources_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "halved/test").mkdir(parents=True)
    cases = {
        "is no folder": data_config(source="folder", dir=str(tmp_path / "nowhere")),
        "config.data.dir is ''": data_config(source="folder"),
        "config.data.name is empty": data_config(source="tfds"),
        "no folder train": data_config(source="folder", dir=str(tmp_path / "halved")),
        "No JPEG or PNG": data_config(source="folder", dir=str(tmp_path)),
        "TFDS cannot open": data_config(
            source="tfds", name="no_such_set", dir=str(tmp_path)
        ),
    }
    for sentence, config in cases.items():
        with pytest.raises(InputError, match=sentence) as error:
            open_images(config, "train")
        assert "\n" not in str(error.value)


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
