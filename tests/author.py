"""The author's Keras weights in our networks, and our numbers under the author's names.

`arrays` below is a mapping keyed like tests/author_golden.npz:
SECTION/NUMBER:LAYER/PARAMETER for the weights of the sections encoder, sampler, decoder
and discriminator, grad_generator/... and grad_discriminator/... for the gradients,
in/..., out/..., loss/... for inputs and results. Layers are told apart by kind and
taken in the order of their numbers.

`python tests/author.py SOURCE.npz TARGET.npz` makes the small file from a whole one:
gradients become digests.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from math import isqrt, log2

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import losses
from gamix_jax.mixture import aggregate_moments
from gamix_jax.models import Autoencoder, PatchDiscriminator

KEY = re.compile(r"(?P<section>\w+)/(?P<number>\d+):(?P<layer>.+)/(?P<parameter>\w+)")
# Weights of the author's objective: reconstruction, collapse, adversarial (the KL's is
# 1).
RECONSTRUCTION, COLLAPSE, ADVERSARIAL = 5000.0, 0.1, 100.0


class Section:
    """The layers of one Keras network, handed out in order, kind by kind, as Flax parameters."""

    def __init__(self, arrays: Mapping[str, np.ndarray], section: str):
        matches = sorted(
            (m for m in map(KEY.fullmatch, arrays) if m and m["section"] == section),
            key=lambda m: int(m["number"]),
        )
        layers: dict[str, dict[str, np.ndarray]] = {}
        for match in matches:
            layers.setdefault(match["layer"], {})[match["parameter"]] = np.asarray(
                arrays[match[0]]
            )
        self.kinds: dict[str, list[dict[str, np.ndarray]]] = {}
        for name, layer in layers.items():
            self.kinds.setdefault(_kind(name, layer), []).append(layer)
        self._left: dict[str, Iterator] = {
            kind: iter(found) for kind, found in self.kinds.items()
        }

    def norm(self) -> tuple[dict, dict]:
        layer = next(self._left["norm"])
        stats = {}
        if "moving_mean" in layer:
            stats = {
                "BatchNorm_0": {
                    "mean": layer["moving_mean"],
                    "var": layer["moving_variance"],
                }
            }
        return {"BatchNorm_0": {"scale": layer["gamma"], "bias": layer["beta"]}}, stats

    def layer(self, kind: str) -> dict:
        layer = next(self._left[kind])
        if kind == "input_norm":
            return {"scale": layer["gamma"], "bias": layer["beta"]}
        return {"kernel": _oriented(kind, layer["kernel"]), "bias": layer["bias"]}

    def block(self, order: str) -> tuple[dict, dict]:
        """A residual block: n and c are norms and convolutions, t transposed ones, in Keras's order; capitals the shortcut's."""
        params, stats, counts = (
            {},
            {},
            {"Normalization": 0, "Conv": 0, "ConvTranspose": 0},
        )
        for letter in order:
            module = {"n": "Normalization", "c": "Conv", "t": "ConvTranspose"}[
                letter.lower()
            ]
            if letter.isupper():
                name = "shortcut_norm" if letter == "N" else "shortcut"
            else:
                name = f"{module}_{counts[module]}"
                counts[module] += 1
            if module == "Normalization":
                params[name], stats[name] = self.norm()
            else:
                params[name] = self.layer("conv" if module == "Conv" else "transpose")
        return params, stats


def _kind(name: str, layer: dict[str, np.ndarray]) -> str:
    if "layer_normalization" in name:
        return "input_norm"
    if "gamma" in layer:
        return "norm"
    if "transpose" in name:
        return "transpose"
    return "conv" if "conv" in name else "dense"


def _oriented(kind: str, kernel: np.ndarray) -> np.ndarray:
    """Keras keeps the kernel of a transposed convolution as [h, w, out, in], we as [h, w, in, out]."""
    return (
        kernel.transpose(0, 1, 3, 2)
        if kind == "transpose" and kernel.ndim == 4
        else kernel
    )


def models_from_author(
    arrays: Mapping[str, np.ndarray],
) -> tuple[Autoencoder, PatchDiscriminator]:
    """Our networks at the author's widths, stages and sizes, read off the shapes."""
    encoder, decoder = (
        Section(arrays, "encoder").kinds,
        Section(arrays, "decoder").kinds,
    )
    image_size = encoder["input_norm"][0]["gamma"].shape[0]
    bottleneck = encoder["conv"][-1]["kernel"].shape[3]
    latent_size, features = decoder["dense"][0]["kernel"].shape
    stages = round(log2(image_size / isqrt(features // bottleneck)))
    encoder_blocks = (len(encoder["norm"]) // stages - 4) // 3
    decoder_blocks = (len(decoder["norm"]) // stages - 3) // 3
    convolutions = 3 * encoder_blocks + 4  # of a stage
    autoencoder = Autoencoder(
        image_size=image_size,
        channels=encoder["conv"][0]["kernel"].shape[2],
        latent_size=latent_size,
        components=1,
        widths=tuple(
            encoder["conv"][1 + stage * convolutions]["kernel"].shape[2]
            for stage in range(stages)
        ),
        encoder_blocks=encoder_blocks,
        decoder_blocks=decoder_blocks,
        bottleneck=bottleneck,
        norm="affine",
        input_norm=True,
    )
    widths = tuple(
        layer["kernel"].shape[3]
        for layer in Section(arrays, "discriminator").kinds["conv"][:-1]
    )
    halvings = round(log2(image_size / arrays["out/logits_real"].shape[1]))
    strides = tuple(2 if i < halvings else 1 for i in range(len(widths)))
    return autoencoder, PatchDiscriminator(
        widths, strides, norm="affine", norm_logits=True
    )


def variables_from_author(arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Flax variables of (Autoencoder, PatchDiscriminator) from the author's weights."""
    return _variables(arrays, *models_from_author(arrays))


def _variables(
    arrays: Mapping[str, np.ndarray],
    autoencoder: Autoencoder,
    discriminator: PatchDiscriminator,
) -> tuple[dict, dict]:
    stages = len(autoencoder.widths)

    section = Section(arrays, "encoder")
    params, stats = (
        {"LayerNorm_0": section.layer("input_norm"), "Conv_0": section.layer("conv")},
        {},
    )
    for stage in range(stages):
        for block in range(autoencoder.encoder_blocks):
            name = f"ResidualBlock_{stage * autoencoder.encoder_blocks + block}"
            params[name], stats[name] = section.block("ncncnc")
        name = f"DownsampleBlock_{stage}"
        params[name], stats[name] = section.block("ncncnNcC")
    params["Conv_1"] = section.layer("conv")
    encoder = params, stats

    section = Section(arrays, "decoder")
    params, stats = (
        {"Dense_0": section.layer("dense"), "Conv_0": section.layer("conv")},
        {},
    )
    for stage in range(stages):
        for block in range(autoencoder.decoder_blocks):
            name = f"ResidualBlock_{stage * autoencoder.decoder_blocks + block}"
            params[name], stats[name] = section.block("ncncnc")
        name = f"UpsampleBlock_{stage}"
        params[name], stats[name] = section.block("ncnNtT")
    params["Conv_1"] = section.layer("conv")
    decoder = params, stats

    section = Section(arrays, "sampler")
    head = {"mean": section.layer("dense"), "log_var": section.layer("dense")}

    section = Section(arrays, "discriminator")
    params, stats = {}, {}
    for i in range(len(discriminator.widths) + 1):
        params[f"Conv_{i}"] = section.layer("conv")
        params[f"Normalization_{i}"], stats[f"Normalization_{i}"] = section.norm()
    return (
        {
            "params": {"encoder": encoder[0], "head": head, "decoder": decoder[0]},
            "batch_stats": {"encoder": encoder[1], "decoder": decoder[1]},
        },
        {"params": params, "batch_stats": stats},
    )


def gradients_from_author(arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The author's gradients, or their digests, in the trees of (Autoencoder, PatchDiscriminator) parameters."""
    gradients = {}
    for match in filter(None, map(KEY.fullmatch, arrays)):
        if match["section"].startswith("grad_"):
            gradients[f"{match['layer']}/{match['parameter']}"] = arrays[match[0]]
    in_place = {}
    for match in filter(None, map(KEY.fullmatch, arrays)):
        name = f"{match['layer']}/{match['parameter']}"
        if name in gradients and not match["section"].startswith("grad_"):
            in_place[match[0]] = gradients[name]
    return tuple(
        variables["params"]
        for variables in _variables(in_place, *models_from_author(arrays))
    )


def _forward(
    arrays: Mapping[str, np.ndarray], generator: dict, discriminator: dict
) -> dict[str, jax.Array]:
    autoencoder, patches = models_from_author(arrays)
    images = jnp.asarray(arrays["in/images"])
    features = autoencoder.apply(
        generator, images, method=lambda model, x: model.encoder(x, train=True)
    )
    posterior = autoencoder.apply(generator, images, train=True, method="encode")
    z = (
        posterior.mean
        + jnp.exp(0.5 * posterior.log_var) * jnp.asarray(arrays["in/eps"])[:, None, :]
    )
    reconstruction = autoencoder.apply(generator, z, train=True, method="decode")[:, 0]
    real_logits = patches.apply(discriminator, images, train=True)
    fake_logits = patches.apply(discriminator, reconstruction, train=True)
    bce = losses.bce_generator_loss
    out = {
        "out/encoder_features": features,
        "out/z_mean": posterior.mean[:, 0],
        "out/z_log_var": posterior.log_var[:, 0],
        "out/z": z[:, 0],
        "out/reconstruction": reconstruction,
        "out/logits_real": real_logits,
        "out/logits_fake": fake_logits,
    }
    loss = {
        "reconstruction": RECONSTRUCTION
        * jnp.mean(losses.absolute_error(images, reconstruction)),
        "kl_population": losses.aggregate_kl(aggregate_moments(posterior), "between"),
        "kl_individual": COLLAPSE * jnp.mean(losses.collapse_penalty(posterior)),
        "kl_standard_vae": jnp.mean(
            losses.gaussian_kl(posterior.mean, posterior.log_var)
        ),
        "real_discriminator": ADVERSARIAL * bce(real_logits),
        "fake_discriminator": ADVERSARIAL * bce(-fake_logits),
        "fake_generator": ADVERSARIAL * bce(fake_logits),
        "discriminator_total": ADVERSARIAL
        * losses.bce_discriminator_loss(real_logits, fake_logits),
    }
    loss["generator_total"] = (
        loss["reconstruction"]
        + loss["kl_population"]
        + loss["kl_individual"]
        + loss["fake_generator"]
    )
    return out | {f"loss/{name}": value for name, value in loss.items()}


def forward_from_author(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our numbers for the author's weights and inputs, under the keys of `out/` and `loss/`."""
    return {
        key: np.asarray(value)
        for key, value in _forward(arrays, *variables_from_author(arrays)).items()
    }


def our_gradients(arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Our gradients of loss/generator_total and loss/discriminator_total with respect to each player's parameters."""
    generator, discriminator = jax.tree.map(jnp.asarray, variables_from_author(arrays))

    def total(
        name: str, generator_params: dict, discriminator_params: dict
    ) -> jax.Array:
        return _forward(
            arrays,
            generator | {"params": generator_params},
            discriminator | {"params": discriminator_params},
        )[name]

    return (
        jax.grad(lambda p: total("loss/generator_total", p, discriminator["params"]))(
            generator["params"]
        ),
        jax.grad(lambda p: total("loss/discriminator_total", generator["params"], p))(
            discriminator["params"]
        ),
    )


def digest(gradient: np.ndarray) -> np.ndarray:
    """Norm of an array and four projections on fixed random directions, float64 [5]: enough to tell two arrays apart."""
    flat = np.asarray(gradient, np.float64).ravel()
    directions = np.random.default_rng(0).standard_normal((4, flat.size))
    return np.concatenate([[np.linalg.norm(flat)], directions @ flat])


def main(source: str, target: str) -> None:
    arrays = dict(np.load(source))
    for key in arrays:
        if key.startswith("grad_"):
            arrays[key] = digest(
                _oriented("transpose" if "transpose" in key else "", arrays[key])
            )
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
