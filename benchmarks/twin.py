"""The networks of gamix_jax in PyTorch, as its users would write them; for torch_twin.py.

Written for what is timed: K = 1 and group norm.

Reconstructions, and real images beside them, are mirrored in both axes. PyTorch's
convolutions of stride 2 begin one pixel before the image, XLA's "SAME" ends one behind it:
on mirrored images the two are the same, so no layer here pads or crops. Modules have
Flax's names, so that `load` finds their weights.
"""

import math
from collections import Counter
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import nn


def norm(channels: int) -> nn.GroupNorm:
    """`gamix_jax.models.normalization.Normalization` of the kind "group"."""
    groups = max(1, min(math.gcd(32, channels), channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv(channels: int, features: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, features, size, stride, padding=size // 2)


def conv_transpose(channels: int, features: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(
        channels, features, 3, stride=2, padding=1, output_padding=1
    )


class Residual(nn.Module):
    """[B, C, H, W] through norm, ReLU and each convolution in turn, plus the input, which goes through `shortcut` if there is one."""

    def __init__(self, *convolutions: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch, seen = nn.Sequential(), Counter()
        for i, layer in enumerate(convolutions):
            kind = type(layer).__name__.removesuffix("2d")
            self.branch.add_module(f"Normalization_{i}", norm(layer.in_channels))
            self.branch.add_module(f"ReLU_{i}", nn.ReLU(inplace=True))
            self.branch.add_module(f"{kind}_{seen[kind]}", layer)
            seen[kind] += 1
        self.aside = nn.Sequential()
        if shortcut:
            self.aside.add_module("shortcut_norm", norm(shortcut.in_channels))
            self.aside.add_module("ReLU", nn.ReLU(inplace=True))
            self.aside.add_module("shortcut", shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aside(x) + self.branch(x)


def residual_block(c: int) -> Residual:
    return Residual(conv(c, c, 3), conv(c, c, 3), conv(c, c, 1))


def downsample_block(c: int, features: int) -> Residual:
    return Residual(
        conv(c, c, 3),
        conv(c, c, 3),
        conv(c, features, 1, 2),
        shortcut=conv(c, features, 1, 2),
    )


def upsample_block(c: int, features: int) -> Residual:
    return Residual(
        conv(c, features, 1),
        conv_transpose(features, features),
        shortcut=conv_transpose(c, features),
    )


class Encoder(nn.Sequential):
    """Images [B, C, H, W] in [-1, 1] to features [B, bottleneck, H / 2^stages, W / 2^stages]."""

    def __init__(self, channels: int, widths: tuple, blocks: int, bottleneck: int):
        super().__init__()
        self.add_module("Conv_0", conv(channels, widths[0], 3))
        for i, features in enumerate((*widths[1:], widths[-1])):
            for j in range(i * blocks, (i + 1) * blocks):
                self.add_module(f"ResidualBlock_{j}", residual_block(widths[i]))
            block = downsample_block(widths[i], features)
            self.add_module(f"DownsampleBlock_{i}", block)
        self.add_module("Conv_1", conv(widths[-1], bottleneck, 1))


class Decoder(nn.Sequential):
    """Latent vectors [B, D] to mirrored images [B, channels, size, size], about [-1, 1]."""

    def __init__(
        self,
        latent_size: int,
        size: int,
        channels: int,
        widths: tuple,
        blocks: int,
        bottleneck: int,
    ):
        super().__init__()
        side = size // 2 ** len(widths)
        self.add_module("Dense_0", nn.Linear(latent_size, side * side * bottleneck))
        self.add_module("Unflatten", nn.Unflatten(1, (bottleneck, side, side)))
        self.add_module("Conv_0", conv(bottleneck, widths[-1], 3))
        inner = widths[::-1]
        for i, features in enumerate((*inner[1:], channels)):
            for j in range(i * blocks, (i + 1) * blocks):
                self.add_module(f"ResidualBlock_{j}", residual_block(inner[i]))
            self.add_module(f"UpsampleBlock_{i}", upsample_block(inner[i], features))
        self.add_module("Conv_1", conv(channels, channels, 1))


class PatchDiscriminator(nn.Sequential):
    """Mirrored images [B, C, H, W] to logits [B, 1, H', W']."""

    def __init__(self, channels: int, widths: tuple, strides: tuple):
        super().__init__()
        inputs = (channels, *widths[:-1])
        for i, (c, width, stride) in enumerate(
            zip(inputs, widths, strides, strict=True)
        ):
            self.add_module(f"Conv_{i}", conv(c, width, 3, stride))
            self.add_module(f"Normalization_{i}", norm(width))
            self.add_module(f"LeakyReLU_{i}", nn.LeakyReLU(0.3, inplace=True))
        self.add_module(f"Conv_{len(widths)}", conv(widths[-1], 1, 3))


class Autoencoder(nn.Module):
    """Encoder, the head of one Gaussian, decoder."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        model, data = config.model, config.data
        widths, latent_size = tuple(model.widths), model.latent_size
        features = model.bottleneck * (data.size // 2 ** len(widths)) ** 2
        self.encoder = Encoder(
            data.channels, widths, model.encoder_blocks, model.bottleneck
        )
        self.head = nn.ModuleDict(
            {
                "mean": nn.Linear(features, latent_size),
                "log_var": nn.Linear(features, latent_size),
            }
        )
        self.decoder = Decoder(
            latent_size,
            data.size,
            data.channels,
            widths,
            model.decoder_blocks,
            model.bottleneck,
        )


def load(module: nn.Module, params: Any, bottleneck: int) -> None:
    """Weights of gamix_jax into the module of the same names.

    Args:
      module: `Autoencoder` or `PatchDiscriminator`.
      params: of its counterpart in Flax.
      bottleneck: channels of the feature maps next to the latent vector.
    """

    def channels_first(x: np.ndarray, mirror: bool) -> np.ndarray:
        """Rows from the order of [H, W, C] to that of [C, H, W]."""
        side = math.isqrt(len(x) // bottleneck)
        maps = x.reshape(side, side, bottleneck, -1)
        maps = maps[::-1, ::-1] if mirror else maps
        return maps.transpose(2, 0, 1, 3).reshape(x.shape)

    for name, layer in module.named_modules():
        if not hasattr(layer, "bias"):
            continue
        values = params
        for key in (*name.split("."), "GroupNorm_0"):
            values = values.get(key, values)  # Flax knows no "branch" and "aside"
        bias = np.asarray(values["bias"])
        if isinstance(layer, nn.GroupNorm):
            weight = np.asarray(values["scale"])
        else:
            weight = np.asarray(values["kernel"])
        if weight.ndim == 4:
            order = (
                (2, 3, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else (3, 2, 0, 1)
            )
            weight = weight.transpose(order)
            if not name.startswith("encoder"):
                weight = weight[:, :, ::-1, ::-1]
        elif name.startswith("head"):
            weight = channels_first(weight, mirror=False).T
        elif isinstance(layer, nn.Linear):
            weight = channels_first(weight.T, mirror=True)
            bias = channels_first(bias, mirror=True)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.ascontiguousarray(weight)))
            layer.bias.copy_(torch.tensor(np.ascontiguousarray(bias)))
