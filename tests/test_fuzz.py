"""Hundreds of damaged images and odd configurations: a sentence of ours or a result, never a traceback, never a hang."""

import faulthandler
import io
import json
import random
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image
from test_data import data_config
from test_main import ROOT

from gamix_jax import flags as gamix_flags
from gamix_jax.config import flatten
from gamix_jax.config_check import check_config
from gamix_jax.data import open_images
from gamix_jax.errors import InputError
from gamix_jax.state import create_state

IMAGES, VALUES = 500, 200


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def originals():
    """A few small files of every kind that is read, by suffix."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    kinds = {
        "jpg": [rgb, rgb.convert("L"), rgb.convert("CMYK")],
        "png": [rgb, rgb.quantize(16), rgb.convert("LA"), rgb.convert("I;16")],
        "webp": [rgb, rgb.convert("RGBA")],
    }
    for suffix, images in kinds.items():
        for image in images:
            for options in ({}, {"exif": image.getexif().tobytes()}):
                file = io.BytesIO()
                image.save(file, {"jpg": "jpeg"}.get(suffix, suffix), **options)
                yield suffix, file.getvalue()


def mutated(content, rng):
    """One to eight changes: bytes, runs of bytes, lengths, cuts, repeats, swaps."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(content) + 1)
        size = rng.choice([1, 2, 4, 16, 200])
        match rng.randrange(6):
            case 0:
                content[at : at + size] = rng.randbytes(size)
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = rng.randbytes(size)
            case 3:
                content[at : at + 4] = rng.choice(
                    [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]
                )
            case 4:
                content[at:at] = content[at : at + size]
            case 5:
                del content[at:]
    return bytes(content)


def test_damaged_images_are_left_out_or_decoded(tmp_path):
    """All in one folder, as a training meets them; the whole one at the end stands in for those that are left out."""
    rng, kinds = random.Random(0), list(originals())
    for i in range(IMAGES):
        suffix, content = rng.choice(kinds)
        (tmp_path / f"{i:03}.{suffix}").write_bytes(mutated(content, rng))
    (tmp_path / "whole.png").write_bytes(kinds[6][1])
    config = data_config(
        source="folder",
        dir=str(tmp_path),
        channels=3,
        test_fraction=0.0,
        max_bad_fraction=0.999,
    )
    images = open_images(config, "train")
    for image in images:
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
    bad = len(images.unreadable)
    assert all("\n" not in sentence for sentence in images.unreadable.values())
    assert IMAGES / 4 < bad < IMAGES  # else the mutations are too tame, or too wild
    config.max_bad_fraction = (bad - 1) / (IMAGES + 1)
    images = open_images(config, "train")
    with pytest.raises(InputError, match=rf"{bad} of the 501 images cannot be decoded"):
        list(images)


def odd_values(rng, value):
    """As a command line gives them."""
    numbers = [
        "0",
        "-1",
        "1",
        "3",
        "1e9",
        "0.5",
        "-0.0",
        "nan",
        "inf",
        "1e-300",
        "99999999999999999999",
    ]
    words = [
        "",
        "x",
        "None",
        "True",
        "()",
        "(0,)",
        "(8,8)",
        "(1.5,)",
        "[8]",
        "{}",
        "'",
        "é",
        "a\nb",
        "%s",
        "../..",
    ]
    near = [str(value), repr(value), f"{value}{value}"]
    return rng.choice(rng.choice([numbers, words, near]))


def parsed(argument):
    """The configuration that a command line gives, by our flags."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    line = ["main", f"--config={ROOT / 'configs/digits.py'}", argument]
    with mock.patch.object(sys, "argv", line):  # ml_collections looks there
        gamix_flags.parse_flags(line, values)
    return config.value


def outcome(argument):
    """What becomes of one: the sentence that refuses it, or None where the networks can be made."""
    try:
        config = parsed(argument)
        check_config(config, 8)
    except (SystemExit, InputError) as error:
        return str(error)
    json.dumps(flatten(config))
    if argument.startswith(("--config.model", "--config.disc", "--config.data.")):
        jax.eval_shape(lambda: create_state(config))
    return None


@pytest.mark.slow
# Of ml_collections, whose loading of a file is old.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_odd_values_are_refused_in_one_sentence_or_make_networks():
    rng = random.Random(0)
    keys = flatten(parsed("--config.seed=0"))
    refused = 0
    for _ in range(VALUES):
        key = rng.choice(list(keys))
        argument = f"--config.{key}={odd_values(rng, keys[key])}"
        sentence = outcome(argument)
        if sentence is not None:
            assert key.split(".")[-1] in sentence, argument
            assert "\n" not in sentence, argument
            assert "Traceback" not in sentence, argument
            refused += 1
    assert VALUES / 5 < refused < VALUES * 4 / 5
