"""Shapes, counts and properties of the networks."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gamix_jax.models import Autoencoder, Decoder, Encoder, PatchDiscriminator
from gamix_jax.models.normalization import Normalization
from gamix_jax.models.resnet_v2 import (
    ConvTranspose,
    DownsampleBlock,
    ResidualBlock,
    UpsampleBlock,
)

KEY = jax.random.key(0)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tiny(**fields):
    defaults = {
        "image_size": 8,
        "channels": 1,
        "latent_size": 4,
        "components": 1,
        "widths": (8,),
        "bottleneck": 4,
    }
    return Autoencoder(**{**defaults, "encoder_blocks": 1, "norm": "group", **fields})


def initialized(model, *args):
    """Variables of a model, all moved off their initial values, so that nothing is hidden by a zero or a one."""
    variables = jax.jit(lambda: model.init(KEY, *args))()
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [
            x + 0.1 * jnp.abs(jax.random.normal(k, x.shape))
            for x, k in zip(leaves, keys, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("size", "channels", "widths", "components"),
    [(8, 1, (8,), 1), (12, 3, (4, 8), 3), (16, 3, (4, 4, 8), 2)],
)
def test_autoencoder_shapes(size, channels, widths, components):
    model = tiny(
        image_size=size, channels=channels, widths=widths, components=components
    )
    images, keys = noise(2, size, size, channels), jax.random.split(KEY, 2)
    posterior, prior, z, reconstruction = jax.eval_shape(
        lambda: model.init_with_output(KEY, images, keys, samples=3)[0]
    )
    chex.assert_shape(posterior.logits, (2, components))
    chex.assert_shape([posterior.mean, posterior.log_var], (2, components, 4))
    assert prior is None  # N(0, I)
    chex.assert_shape(z, (3, 2, components, 4))
    chex.assert_shape(reconstruction, (3, 2, components, size, size, channels))


def test_features_and_patches_shrink_as_said():
    features = jax.eval_shape(
        lambda: Encoder((4, 4, 4), bottleneck=6).init_with_output(
            KEY, noise(2, 24, 24, 3)
        )[0]
    )
    chex.assert_shape(features, (2, 3, 3, 6))
    images = jax.eval_shape(
        lambda: Decoder(24, 3, (4, 4, 4), bottleneck=6).init_with_output(
            KEY, noise(2, 5)
        )[0]
    )
    chex.assert_shape(images, (2, 24, 24, 3))
    logits = jax.eval_shape(
        lambda: PatchDiscriminator((8, 8), (2, 1)).init_with_output(
            KEY, noise(2, 24, 24, 3)
        )[0]
    )
    chex.assert_shape(logits, (2, 12, 12, 1))


def test_sizes_that_the_stages_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"\(10, 10\).*2 times"):
        Encoder((4, 4)).init(KEY, noise(1, 10, 10, 1))
    with pytest.raises(ValueError, match=r"10 pixels.*2 times"):
        Decoder(10, 1, (4, 4)).init(KEY, noise(1, 4))
    with pytest.raises(ValueError, match="differ in length"):
        PatchDiscriminator((8, 8), (2,)).init(KEY, noise(1, 8, 8, 1))
    with pytest.raises(ValueError, match="layer"):
        Encoder((4,), norm="layer").init(KEY, noise(1, 8, 8, 1))


def test_author_s_parameter_counts():
    """DESIGN.md section 2: 9,908,140 + 24,326 in encoder and decoder, 411,075 + 1,026 in the discriminator, at 256x256."""
    model = tiny(
        image_size=256,
        channels=3,
        latent_size=512,
        widths=(128,) * 6,
        encoder_blocks=2,
        bottleneck=64,
        norm="affine",
        input_norm=True,
    )
    patches = PatchDiscriminator(norm="affine", norm_logits=True)
    images = jnp.zeros((1, 256, 256, 3))
    autoencoder = jax.eval_shape(
        lambda: model.init(KEY, images, jax.random.split(KEY, 1))
    )
    discriminator = jax.eval_shape(lambda: patches.init(KEY, images))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    heads = autoencoder["params"].pop("head")
    assert (count(autoencoder["params"]), count(autoencoder["batch_stats"])) == (
        9_908_140,
        24_326,
    )
    assert (
        count(heads) == 2 * (4 * 4 * 64 + 1) * 512
    )  # two dense layers, features and bias to D
    assert (count(discriminator["params"]), count(discriminator["batch_stats"])) == (
        411_075,
        1_026,
    )


def test_conv_transpose_is_lax_s():
    x = noise(2, 5, 7, 3)
    variables = initialized(ConvTranspose(4), x)

    def ours(params, x):
        return ConvTranspose(4).apply({"params": params}, x)

    def theirs(params, x):
        # lax takes the kernel of the forward convolution, [h, w, out, in]
        y = jax.lax.conv_transpose(
            x,
            params["kernel"].transpose(0, 1, 3, 2),
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )
        return y + params["bias"].reshape(1, 1, 1, -1)

    chex.assert_shape(ours(variables["params"], x), (2, 10, 14, 4))
    cotangent = noise(2, 10, 14, 4)
    a, b = (
        jax.value_and_grad(lambda p, x: jnp.sum(f(p, x) * cotangent), argnums=(0, 1))(
            variables["params"], x
        )
        for f in (ours, theirs)
    )
    chex.assert_trees_all_close(
        a, b, rtol=1e-4, atol=1e-4
    )  # sums of 280 float32 products of size 1


def test_residual_blocks_add_their_input():
    """A shortcut that convolves the main branch (found in maskgit) would show: here the main branch is zero."""
    x = noise(2, 8, 8, 4)

    def without_main_branch(block, last):
        variables = initialized(block, x, False)
        variables["params"][last] = jax.tree.map(
            jnp.zeros_like, variables["params"][last]
        )
        return variables["params"], block.apply(variables, x, False)

    _, y = without_main_branch(ResidualBlock("group"), "Conv_2")
    np.testing.assert_array_equal(y, x)
    for block, last, shortcut in (
        (DownsampleBlock(6, "group"), "Conv_2", nn.Conv(6, (1, 1), strides=2)),
        (UpsampleBlock(6, "group"), "ConvTranspose_0", ConvTranspose(6)),
    ):
        params, y = without_main_branch(block, last)
        activated = nn.relu(
            Normalization("group").apply({"params": params["shortcut_norm"]}, x, False)
        )
        np.testing.assert_allclose(
            y,
            shortcut.apply({"params": params["shortcut"]}, activated),
            rtol=1e-6,
            atol=1e-6,
        )


def test_batch_norm_uses_the_statistics_of_all_replicas():
    x = 3 + 2 * noise(16, 2, 2, 4)
    model = Normalization("batch")
    variables = model.init(KEY, x[:1], False)

    def apply(x):
        return model.apply(variables, x, True, mutable=["batch_stats"])

    y, updates = jax.pmap(apply, axis_name="batch", out_axes=(0, None))(
        x.reshape(8, 2, 2, 2, 4)
    )
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(
        y.reshape(x.shape), (x - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-4
    )
    stats = updates["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(
        stats["mean"], 0.01 * mean, rtol=1e-5
    )  # momentum 0.99 from mean 0, variance 1
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * variance, rtol=1e-5)


def test_group_norm_does_not_tie_an_image_to_its_batch():
    model, x = tiny(), noise(4, 8, 8, 1)
    variables = initialized(model, x, jax.random.split(KEY, 4))
    encode = lambda x: model.apply(variables, x, train=True, method="encode").mean
    np.testing.assert_allclose(encode(x)[:1], encode(x[:1]), rtol=1e-4, atol=1e-5)
    assert "batch_stats" not in variables


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 12, 20, 24, 36, 128, 130])
def test_group_norm_takes_any_number_of_channels(channels):
    y = Normalization("group").init_with_output(KEY, noise(2, 4, 4, channels), False)[0]
    chex.assert_shape(y, (2, 4, 4, channels))


def test_affine_norm_is_a_fixed_scale_and_offset():
    x, model = noise(4, 2, 2, 4), Normalization("affine")
    variables = initialized(model, x, False)
    y, updates = model.apply(variables, x, True, mutable=["batch_stats"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    params, stats = (
        variables["params"]["BatchNorm_0"],
        variables["batch_stats"]["BatchNorm_0"],
    )
    expected = (x - stats["mean"].reshape(1, 1, 1, 4)) / np.sqrt(
        stats["var"] + 1e-3
    ).reshape(1, 1, 1, 4)
    expected = expected * params["scale"].reshape(1, 1, 1, 4) + params["bias"].reshape(
        1, 1, 1, 4
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_input_norm_removes_brightness_and_contrast():
    x = noise(2, 8, 8, 3)
    for input_norm in (True, False):
        model = tiny(channels=3, input_norm=input_norm)
        variables = initialized(model, x, jax.random.split(KEY, 2))
        encode = lambda x: model.apply(variables, x, method="encode").mean
        same = np.allclose(encode(x), encode(3 * x + 1), atol=1e-2)
        assert same == input_norm


def test_bfloat16_computes_narrow_and_keeps_wide():
    x, keys = noise(2, 8, 8, 1), jax.random.split(KEY, 2)
    wide, narrow = tiny(), tiny(dtype=jnp.bfloat16)
    variables = initialized(narrow, x, keys)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    coding = narrow.apply(variables, x, keys)
    z = coding.z
    assert {leaf.dtype for leaf in jax.tree.leaves(coding)} == {jnp.dtype("float32")}
    features = narrow.apply(variables, x, method=lambda model, x: model.encoder(x))
    assert features.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: relative errors of about 2^-8 a layer, a dozen layers
    np.testing.assert_allclose(
        narrow.apply(variables, z, method="decode"),
        wide.apply(variables, z, method="decode"),
        rtol=0.1,
        atol=0.1,
    )
    patches = PatchDiscriminator((8,), (2,), norm="group", dtype=jnp.bfloat16)
    logits, _ = patches.init_with_output(KEY, x)
    assert logits.dtype == jnp.float32


@pytest.mark.slow
def test_remat_changes_memory_alone():
    """Names, values, statistics and gradients are as without; the blocks' insides are not kept."""
    images, keys = jnp.asarray(noise(4, 8, 8, 1)), jax.random.split(KEY, 4)
    results, kept = [], []
    for remat in (False, True):
        model = tiny(norm="batch", remat=remat)
        variables = initialized(model, images, keys)

        @jax.jit
        def loss(params, model=model, rest=variables["batch_stats"]):
            coding, updates = jax.vmap(  # for the axis of batch normalisation
                lambda x, k: model.apply(
                    {"params": params, "batch_stats": rest},
                    x,
                    k,
                    train=True,
                    mutable=["batch_stats"],
                ),
                axis_name="batch",
            )(images[None], keys[None])
            return jnp.sum(jnp.square(coding.reconstruction)), updates

        value, pull_back, updates = jax.vjp(loss, variables["params"], has_aux=True)
        results.append((value, updates, pull_back(jnp.ones_like(value))))
        kept.append(sum(x.size for x in jax.tree.leaves(pull_back)))
    for kept_all, kept_some in zip(*results, strict=True):
        # float32; some gradients are nothing but rounding (a bias before a norm)
        difference = optax.tree.norm(optax.tree.sub(kept_all, kept_some))
        assert difference <= 1e-5 * optax.tree.norm(kept_all)
    assert kept[1] < kept[0]


def test_decode_takes_any_leading_axes():
    model, z = tiny(), noise(2, 3, 4)
    variables = initialized(model, noise(2, 8, 8, 1), jax.random.split(KEY, 2))
    images = model.apply(variables, z, method="decode")
    chex.assert_shape(images, (2, 3, 8, 8, 1))
    np.testing.assert_allclose(
        images[1, 2],
        model.apply(variables, z[1, 2][None], method="decode")[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_noise_belongs_to_the_image_not_to_the_batch():
    model, x, keys = tiny(components=2), noise(4, 8, 8, 1), jax.random.split(KEY, 4)
    variables = initialized(model, x, keys)
    z = model.apply(variables, x, keys).z
    last = model.apply(variables, x[2:], keys[2:]).z
    np.testing.assert_allclose(z[:, 2:], last, rtol=1e-4, atol=1e-5)
