"""InceptionV3 as the Frechet inception distance takes it (Heusel et al. 2017): 2,048 features, its last pooling.

The network is the one that TensorFlow gave out on 2015-12-05, which is not quite that
of Szegedy et al. 2016: the average pooling counts no padding, and the last block pools
by the maximum. Its weights are in weights-inception-2015-12-05-6726825d.pth of
torch-fidelity and, under the same names, in pt_inception-2015-12-05-6726825d.pth of
pytorch-fid.

Protocol, that of torch-fidelity: uint8 images of any size, grey ones repeated to three
channels, resized to 299x299 by TensorFlow 1's bilinear interpolation (no antialiasing,
first pixels aligned), then (x - 128) / 128; computed in float32, on accelerators too.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gamix_jax.errors import InputError
from gamix_jax.features.files import check_arrays, read_arrays

FEATURES, SIZE = 2048, 299

# A block is branches side by side; a branch is convolutions one after another, each
# written CHANNELS:KERNEL, rows by columns. Two kernels work side by side too. Blocks
# are named by the pixels of their maps: 35x35, 17x17, 8x8.
Block = dict[str, str]
EIGHT = {
    "branch1x1": "320:1x1",
    "branch3x3": "384:1x1 384:1x3,3x1",
    "branch3x3dbl": "448:1x1 384:3x3 384:1x3,3x1",
    "branch_pool": "192:1x1",
}


def _thirty_five(pooled: int) -> Block:
    return {
        "branch1x1": "64:1x1",
        "branch5x5": "48:1x1 64:5x5",
        "branch3x3dbl": "64:1x1 96:3x3 96:3x3",
        "branch_pool": f"{pooled}:1x1",
    }


def _seventeen(c: int) -> Block:
    return {
        "branch1x1": "192:1x1",
        "branch7x7": f"{c}:1x1 {c}:1x7 192:7x1",
        "branch7x7dbl": f"{c}:1x1 {c}:7x1 {c}:1x7 {c}:7x1 192:1x7",
        "branch_pool": "192:1x1",
    }


# "average" and "maximum" pool before branch_pool. "halve" is a block whose branches end
# with stride 2, beside the maximum of its input.
BLOCKS: dict[str, tuple[str, Block]] = {
    "Mixed_5b": ("average", _thirty_five(32)),
    "Mixed_5c": ("average", _thirty_five(64)),
    "Mixed_5d": ("average", _thirty_five(64)),
    "Mixed_6a": (
        "halve",
        {"branch3x3": "384:3x3", "branch3x3dbl": "64:1x1 96:3x3 96:3x3"},
    ),
    "Mixed_6b": ("average", _seventeen(128)),
    "Mixed_6c": ("average", _seventeen(160)),
    "Mixed_6d": ("average", _seventeen(160)),
    "Mixed_6e": ("average", _seventeen(192)),
    "Mixed_7a": (
        "halve",
        {
            "branch3x3": "192:1x1 320:3x3",
            "branch7x7x3": "192:1x1 192:1x7 192:7x1 192:3x3",
        },
    ),
    "Mixed_7b": ("average", EIGHT),
    "Mixed_7c": ("maximum", EIGHT),
}


class ConvNormRelu(nn.Module):
    """Convolution, batch normalisation by the stored statistics, ReLU."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, C] to [n, h', w', channels]."""
        convolution = nn.Conv(
            self.channels,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            name="conv",
        )
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")
        return nn.relu(norm(convolution(x)))


class InceptionV3(nn.Module):
    """The network; its convolutions have the names that they have in the file of weights."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, 299, 299, 3] of [-1, 1) to [n, 2048]."""
        x = ConvNormRelu(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNormRelu(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNormRelu(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = ConvNormRelu(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = ConvNormRelu(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        for block, (pooling, branches) in BLOCKS.items():
            outputs = []
            for branch, text in branches.items():
                y = _pool(x, pooling) if branch == "branch_pool" else x
                outputs.append(self._branch(y, f"{block}.{branch}", text, pooling))
            if pooling == "halve":
                outputs.append(_pool(x, pooling))
            x = jnp.concatenate(outputs, axis=-1)
        return jnp.mean(x, axis=(1, 2))

    def _branch(self, x: jax.Array, name: str, text: str, pooling: str) -> jax.Array:
        convolutions = text.split()
        for number, convolution in enumerate(convolutions, start=1):
            place = f"_{number}" if len(convolutions) > 1 else ""
            halves = pooling == "halve" and number == len(convolutions)
            channels, _, kernels = convolution.partition(":")
            sizes = [tuple(map(int, size.split("x"))) for size in kernels.split(",")]
            outputs = [
                ConvNormRelu(
                    int(channels),
                    size,
                    *((2, "VALID") if halves else (1, "SAME")),
                    name=f"{name}{place}{letter}",
                )(x)
                for size, letter in zip(sizes, "ab" if sizes[1:] else [""], strict=True)
            ]
            x = jnp.concatenate(outputs, axis=-1)
        return x


def _pool(x: jax.Array, pooling: str) -> jax.Array:
    if pooling == "halve":
        return nn.max_pool(x, (3, 3), (2, 2))
    if pooling == "maximum":
        return nn.max_pool(x, (3, 3), padding="SAME")
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def resize_bilinear(images: jax.Array, size: int) -> jax.Array:
    """float32 [n, H, W, C] to [n, size, size, C] as TensorFlow 1 does: output pixel i is at i H / size of the input."""
    for axis in (2, 1):
        count = images.shape[axis]
        position = np.arange(size, dtype=np.float32) * np.float32(count / size)
        low = position.astype(np.int32)
        shape = [size if i == axis else 1 for i in range(images.ndim)]
        fraction = (position - low).reshape(shape)
        below = jnp.take(images, low, axis)
        above = jnp.take(images, np.minimum(low + 1, count - 1), axis)
        images = below + (above - below) * fraction
    return images


def load_inception(
    path: Path, channels: int
) -> tuple[dict, Callable[[dict, jax.Array], jax.Array]]:
    """The variables, NumPy arrays, and (variables, uint8 [n, H, W, C]) -> features [n, 2048], float32.

    Args:
      path: .pth or .npz of the names of torch's state dictionary, such as
        Mixed_5b.branch1x1.bn.running_mean. The classifying layer `fc` is not used.
      channels: of the images, which may have any height and width.

    Raises:
      InputError: the file is missing, unreadable or of another network, or the images
        are neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise InputError(
            f'The features "inception" are of grey or RGB images, and these have {channels} '
            'channels; set config.data.channels to 1 or 3, or take "classifier".'
        )
    arrays = read_arrays(path)
    wanted = _torch_arrays()
    # ImageNet's networks of the same blocks have other classes.
    fc = {"fc.weight": (1008, FEATURES), "fc.bias": (1008,)}
    check_arrays(
        path,
        "the FID's InceptionV3",
        arrays,
        {shape.name: shape.shape for shape in wanted.values()}
        | {name: shape for name, shape in fc.items() if name in arrays},
        [name for name in arrays if name.endswith(".num_batches_tracked")],
    )
    variables = {}
    for place, (name, shape) in wanted.items():
        array = np.float32(arrays[name])
        variables[place] = array.transpose(2, 3, 1, 0) if len(shape) == 4 else array
    return unflatten_dict(variables), _apply


def preprocess(images: jax.Array) -> jax.Array:
    """uint8 [n, H, W, 1 or 3] to float32 [n, 299, 299, 3] in [-1, 1), by the protocol above."""
    x = resize_bilinear(images.astype(jnp.float32), SIZE)
    return jnp.broadcast_to((x - 128.0) / 128.0, (*x.shape[:3], 3))


def _apply(variables: dict, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return InceptionV3().apply(variables, preprocess(images))


class _TorchArray(NamedTuple):
    name: str
    shape: tuple[int, ...]


@functools.cache  # tracing takes seconds
def _torch_arrays() -> dict[tuple[str, ...], _TorchArray]:
    """What torch has for each of the network's variables, by its place in their tree."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
    names = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
    arrays = {}
    for place, leaf in flatten_dict(variables).items():
        _, convolution, layer, parameter = place
        shape = leaf.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], *shape[:2])
        name = f"{convolution}.{layer}.{names.get(parameter, 'weight')}"
        arrays[place] = _TorchArray(name, shape)
    return arrays
