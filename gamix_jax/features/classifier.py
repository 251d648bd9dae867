"""A small ResNet that labels images; what it pools before its linear layer are features, where InceptionV3 can't be had or does not fit."""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.progress import track

from gamix_jax.cpu import compiler_options
from gamix_jax.data import Images, evaluation_batches, train_batches
from gamix_jax.data.batches import shuffled
from gamix_jax.errors import InputError
from gamix_jax.features.files import (
    check_arrays,
    check_writable,
    read_arrays,
    write_arrays,
)
from gamix_jax.models.normalization import Normalization
from gamix_jax.models.resnet_v2 import DownsampleBlock, ResidualBlock
from gamix_jax.steps import scale_images

KIND = "gamix_jax classifier"
FEATURES = 64
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2


class Classifier(nn.Module):
    """Pre-activation residual network with group normalisation, so that each image is by itself.

    Attributes:
      widths: channels of the stem and after each halving; the last is the number of
        features.
      stride: of the stem.
      classes: logits.
    """

    widths: tuple[int, ...]
    stride: int
    classes: int

    def setup(self) -> None:
        self.stem = nn.Conv(self.widths[0], (3, 3), self.stride)
        self.halvings = [DownsampleBlock(width, "group") for width in self.widths[1:]]
        self.block = ResidualBlock("group")
        self.norm = Normalization("group")
        self.linear = nn.Dense(self.classes)

    def features(self, images: jax.Array) -> jax.Array:
        """[n, H, W, C] in [-1, 1] to [n, widths[-1]]."""
        x = self.stem(images)
        for halve in self.halvings:
            x = halve(x, False)
        x = self.norm(self.block(x, False), False)
        return jnp.mean(nn.relu(x), axis=(1, 2))

    def __call__(self, images: jax.Array) -> jax.Array:
        """[n, H, W, C] in [-1, 1] to logits [n, classes]."""
        return self.linear(self.features(images))


def make_classifier(size: int, classes: int) -> Classifier:
    """The network for images of a size: halved to 4 to 7 pixels, most of it where they are small."""
    halvings = max(1, size.bit_length() - 3)
    stride = 1 if halvings == 1 else 2
    halvings -= stride - 1
    widths = (max(16, FEATURES >> halvings - i) for i in range(halvings + 1))
    return Classifier(tuple(widths), stride, classes)


def load_classifier(
    path: Path, image_size: int, channels: int
) -> tuple[dict, Callable[[dict, jax.Array], jax.Array]]:
    """The variables, NumPy arrays, and (variables, uint8 [n, H, W, C]) -> features [n, 64], float32.

    Raises:
      InputError: the file is missing, unreadable or of another network, or the
        classifier was trained on images of another size or other channels.
    """
    arrays = read_arrays(path)
    header = _header(path, arrays)
    trained = header["image_size"], header["channels"]
    if trained != (image_size, channels):
        raise InputError(
            f"The classifier {path} was trained on images of {_spell(*trained)}, and these "
            f"are of {_spell(image_size, channels)}; train one on such images with "
            "--mode=train_features."
        )
    classifier = make_classifier(image_size, len(header["classes"]))
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), image)["params"]
    wanted = {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}
    check_arrays(path, "a classifier of this version", arrays, wanted, ["header"])
    params = unflatten_dict({name: arrays[name] for name in wanted}, sep="/")

    def apply(variables: dict, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return classifier.apply(variables, scale_images(images), method="features")

    return {"params": params}, apply


def _header(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the file says of the classifier."""
    try:
        header = json.loads(str(arrays["header"]))
    except (KeyError, ValueError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != KIND:
        some = ", ".join(list(arrays)[:3])
        raise InputError(
            f"{path} is a features file of another network than gamix_jax's classifier: it "
            f"has {some or 'nothing'} and no header; make one with --mode=train_features."
        )
    return header


def _spell(size: int, channels: int) -> str:
    return f"{size}x{size} pixels with {channels} channel{'s' * (channels > 1)}"


def train_classifier(
    images: Images,
    test_images: Images,
    out: Path,
    console: Console,
    steps: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Trains on labelled images, on one device, and writes the features file.

    Adam with decoupled weight decay and a cosine schedule. Images are shifted at random
    but not mirrored, which digits are not to be.

    Args:
      images: to train on.
      test_images: held out, of the same source.
      out: OUT.npz, there whole in the end or not at all; what it was before is replaced.
      console: for the progress and the accuracy.
      steps: of training.
      batch_size: images a step.
      seed: of the initial weights, the order of the images and the shifts.

    Returns:
      The accuracy on the held-out images, a fraction.

    Raises:
      InputError: the images have no labels, or all the same; an image cannot be read;
        `out` cannot be written, which is found out first.
    """
    labels, test_labels = images.labels(), test_images.labels()
    if labels is None or test_labels is None:
        raise InputError(
            "A classifier is trained on labels, and these images have none; take images "
            'that have, such as those of a folder for each class, or "inception".'
        )
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError(
            f"All images have the label {classes[0]}; a classifier wants two at least."
        )
    check_writable(out)
    _, size, _, channels = images.shape
    classifier = make_classifier(size, len(classes))
    params = _train(
        classifier,
        images,
        np.searchsorted(classes, labels),
        console,
        steps,
        batch_size,
        seed,
    )
    # A label that was not trained on is never right.
    known = np.isin(test_labels, classes)
    targets = np.where(known, np.searchsorted(classes, test_labels), -1)
    accuracy, count = _accuracy(classifier, params, test_images, targets, batch_size)
    header = {
        "kind": KIND,
        "image_size": size,
        "channels": channels,
        "classes": classes.tolist(),
        "steps": steps,
        "seed": seed,
        "held_out_images": count,
        "held_out_accuracy": accuracy,
    }
    arrays = {
        name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()
    }
    write_arrays(out, {"header": np.array(json.dumps(header)), **arrays})
    console.print(
        f"Wrote {out}: {accuracy:.2%} of {count:,} held-out images are labelled right.",
        soft_wrap=True,
        markup=False,
    )
    return accuracy


def _train(
    classifier: Classifier,
    images: Images,
    targets: np.ndarray,
    console: Console,
    steps: int,
    batch_size: int,
    seed: int,
) -> Any:
    """The parameters after all steps."""
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY
    )
    init_key, run_key = jax.random.split(jax.random.key(seed))

    @jax.jit
    def initialize(key: jax.Array) -> tuple[Any, Any]:
        params = classifier.init(key, jnp.zeros((1, *images.shape[1:])))["params"]
        return params, optimizer.init(params)

    @partial(jax.jit, compiler_options=compiler_options())
    def train_step(
        params: Any, opt_state: Any, step: int, batch: jax.Array, target: jax.Array
    ) -> tuple[Any, Any]:
        key = jax.random.fold_in(run_key, step)
        batch = _shift(key, scale_images(batch), images.shape[1] // 16)

        def loss(params: Any) -> jax.Array:
            logits = classifier.apply({"params": params}, batch)
            # Of target -1, an image that cannot be decoded, this is 0.
            return -jnp.mean(
                jnp.sum(
                    jax.nn.log_softmax(logits)
                    * jax.nn.one_hot(target, classifier.classes),
                    axis=-1,
                )
            )

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = initialize(init_key)
    console.print(
        f"Training a classifier of {classifier.classes} kinds on {len(images):,} images for "
        f"{steps:,} steps",
        soft_wrap=True,
    )
    numbers = track(
        range(steps), "step", console=console, disable=not console.is_terminal
    )
    with contextlib.closing(train_batches(images, batch_size, seed, False)) as batches:
        for step, batch in zip(numbers, batches, strict=False):
            places = np.arange(step * batch_size, (step + 1) * batch_size)
            indices = shuffled(places, len(images), seed)
            target = np.where(images.is_unreadable(indices), -1, targets[indices])
            params, opt_state = train_step(params, opt_state, step, batch, target)
    return params


def _shift(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Each image by up to `most` pixels in both directions, its edges repeated."""
    count, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), "edge")
    corners = jax.random.randint(key, (count, 2), 0, 2 * most + 1)
    return jax.vmap(
        lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape)
    )(padded, corners)


def _accuracy(
    classifier: Classifier,
    params: Any,
    images: Images,
    targets: np.ndarray,
    batch_size: int,
) -> tuple[float, int]:
    """The fraction of images whose largest logit is at their target, and their number."""

    @partial(jax.jit, compiler_options=compiler_options())
    def classify(params: Any, batch: jax.Array) -> jax.Array:
        logits = classifier.apply({"params": params}, scale_images(batch))
        return jnp.argmax(logits, axis=-1)

    right = []
    for batch in evaluation_batches(images, batch_size):
        counted = batch["index"] >= 0
        found = np.asarray(classify(params, batch["image"]))[counted]
        right.extend(found == targets[batch["index"][counted]])
    return float(np.mean(right)), len(right)
