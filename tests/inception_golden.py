"""torch-fidelity's InceptionV3 with weights made of a seed: `inception_golden.npz` holds what it gives.

`random_weights` makes the same weights wherever it runs, so that the file holds outputs
alone: `features` of `images()`, float32 [2, 2048], and `resized`, a patch of their
enlargement. The file was made with torch 2.13.0 and torch-fidelity 0.4.0, in an
environment of their own (torchvision is not wanted), by

    pip install torch numpy && pip install --no-deps torch-fidelity
    python tests/inception_golden.py tests/inception_golden.npz [WEIGHTS.pth]

which also writes the weights as torch writes them, if asked to.
"""

import importlib
import importlib.util
import math
import sys
import types
import zlib
from collections.abc import Mapping
from unittest import mock

import numpy as np

# Rows and columns of the enlarged image that are kept: both ends, and some between.
PATCH = np.r_[0:12, 143:155, 287:299]


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 of [0, 1), by raw bits of Philox, which every NumPy gives alike."""
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return (bits >> 11).reshape(shape) * 2.0**-53


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 weights by the name of each, of a size at which activations neither vanish nor explode."""
    ranges = {"weight": (0.7, 1.4), "bias": (-0.3, 0.3)}
    ranges |= {"running_mean": (-0.3, 0.3), "running_var": (0.2, 1.4)}
    weights = {}
    for name, shape in shapes.items():
        low, high = ranges[name.rpartition(".")[2]]
        if len(shape) > 1:  # as wide as keeps the size of activations
            low, high = np.array((-1, 1)) * math.sqrt(3.5 / math.prod(shape[1:]))
        weights[name] = np.float32(low + (high - low) * uniform(name, shape))
    return weights


def images() -> np.ndarray:
    """Two images of coarse noise, uint8 [2, 48, 40, 3]."""
    coarse = np.kron(uniform("images", (2, 6, 5, 3)), np.ones((1, 8, 8, 1)))
    fine = uniform("fine", coarse.shape)
    return np.uint8(256 * (0.7 * coarse + 0.3 * fine))


def main(target: str, weights_file: str | None = None) -> None:
    import torch

    # The package's own __init__ imports torchvision, which its network does not use.
    package = types.ModuleType("torch_fidelity")
    spec = importlib.util.find_spec("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    resize = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")

    network_type = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url"),  # no download
        mock.patch.object(network_type, "load_state_dict"),
    ):
        network = network_type("inception", ["64", "192", "768", "2048"])
    state = network.state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items() if x.ndim}
    weights = random_weights(shapes)
    state |= {name: torch.from_numpy(x) for name, x in weights.items()}
    network.load_state_dict(state)
    if weights_file:
        torch.save(state, weights_file)

    batch = torch.from_numpy(images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        outputs = [x.numpy() for x in network(batch)]
        resized = resize.interpolate_bilinear_2d_like_tensorflow1x(
            batch.float(), size=(299, 299), align_corners=False
        ).permute(0, 2, 3, 1)
    for x in outputs:
        print(x.shape, "mean", x.mean(), "deviation", x.std(), "largest", x.max())
        print("  apart", np.abs(x[0] - x[1]).mean(), "zero", (x == 0).mean())
    np.savez_compressed(
        target,
        features=outputs[-1],
        resized=resized.numpy()[:, PATCH][:, :, PATCH],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
