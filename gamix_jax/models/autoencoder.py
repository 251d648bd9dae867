"""The autoencoder: ResNetV2 both ways, a Gaussian-mixture posterior between, and the prior."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.mixture import GaussianMixture, standard_normal
from gamix_jax.models.normalization import Norm
from gamix_jax.models.resnet_v2 import Decoder, Encoder


class MixtureHead(nn.Module):
    """Features to the parameters of a Gaussian mixture, by one dense layer each, in float32.

    Attributes:
      latent_size: D.
      components: K; with one component there are no logits to learn.
      weights: "learned", or "uniform": fixed at 1/K, so that no component dies.
    """

    latent_size: int
    components: int = 1
    weights: Literal["learned", "uniform"] = "learned"

    @nn.compact
    def __call__(self, features: jax.Array) -> GaussianMixture:
        """[B, F] to a mixture of leading shape [B]."""
        features = features.astype(jnp.float32)
        shape = (features.shape[0], self.components, self.latent_size)
        # Accelerators' default would round to 8 to 11 bits what moments are made of.
        dense = partial(nn.Dense, precision="highest")
        size = self.components * self.latent_size
        mean = dense(size, name="mean")(features).reshape(shape)
        log_var = dense(size, name="log_var")(features).reshape(shape)
        if self.components == 1 or self.weights == "uniform":
            return GaussianMixture(jnp.zeros(shape[:2]), mean, log_var)
        return GaussianMixture(
            dense(self.components, name="logits")(features), mean, log_var
        )


class MixturePrior(nn.Module):
    """A learned mixture of C Gaussians as p(z); its mean and variance are about those of N(0, I) at first.

    Attributes:
      latent_size: D.
      components: C.
    """

    latent_size: int
    components: int

    @nn.compact
    def __call__(self) -> GaussianMixture:
        """A mixture without leading axes."""
        shape = (self.components, self.latent_size)
        return GaussianMixture(
            self.param("logits", nn.initializers.zeros, shape[:1]),
            self.param("mean", nn.initializers.normal(0.5**0.5), shape),
            self.param("log_var", nn.initializers.constant(jnp.log(0.5)), shape),
        )


class PseudoInputs(nn.Module):
    """C learned images, whose posteriors' average is the VampPrior (Tomczak and Welling 2018).

    Noise at first. Posteriors that are all alike then explain the prior at once, a state
    that training leaves late or never unless the KL's weight begins at 0
    (objective.kl_warmup).

    Attributes:
      count: C.
      image_size: height and width, pixels.
      channels: 1 or 3.
    """

    count: int
    image_size: int
    channels: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """[C, H, W, channels], about [-1, 1] but unbounded."""
        shape = (self.count, self.image_size, self.image_size, self.channels)
        return self.param("images", nn.initializers.normal(1.0), shape)


def draw_for_each(
    posterior: GaussianMixture, keys: jax.Array, samples: int
) -> jax.Array:
    """[T, B, K, D], T `samples` from each component, by one of the keys [B] for each image, so that noise does not depend on how a batch is spread over devices."""
    return jax.vmap(lambda q, key: q.stratified_sample(key, (samples,)), out_axes=1)(
        posterior, keys
    )


class Autoencoding(NamedTuple):
    """What one pass through the autoencoder makes of images [B, H, W, C].

    Attributes:
      posterior: q(z|x), of leading shape [B].
      prior: p(z) without leading axes, or None, as the losses call N(0, I).
      z: [T, B, K, D], T draws from each component.
      reconstruction: [T, B, K, H, W, C], of each draw.
    """

    posterior: GaussianMixture
    prior: GaussianMixture | None
    z: jax.Array
    reconstruction: jax.Array


class Autoencoder(nn.Module):
    """Encoder, mixture head and decoder.

    Attributes:
      image_size: height and width, pixels; a multiple of 2^len(widths).
      channels: 1 or 3.
      latent_size: D.
      components: K.
      weights: see `MixtureHead`.
      prior: p(z): "normal" is N(0, I), "mixture" C learned Gaussians, "vamp" the
        average posterior of C learned pseudo-inputs.
      prior_components: C.
      widths: channels of each stage, encoder's order.
      encoder_blocks, decoder_blocks: residual blocks a stage.
      bottleneck: channels of the feature maps next to the latent vector.
      norm: "batch", "group" or "affine" (see `Normalization`).
      input_norm, remat: see `Encoder`.
      dtype: of the computation, float32 or bfloat16; parameters and posterior are
        float32.
    """

    image_size: int
    channels: int
    latent_size: int
    components: int
    widths: Sequence[int]
    weights: Literal["learned", "uniform"] = "learned"
    prior: Literal["normal", "mixture", "vamp"] = "normal"
    prior_components: int = 100
    encoder_blocks: int = 2
    decoder_blocks: int = 1
    bottleneck: int = 64
    norm: Norm = "batch"
    input_norm: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(
            self.widths,
            self.encoder_blocks,
            self.bottleneck,
            self.norm,
            self.input_norm,
            self.remat,
            self.dtype,
        )
        self.head = MixtureHead(self.latent_size, self.components, self.weights)
        if self.prior == "mixture":
            self.mixture_prior = MixturePrior(self.latent_size, self.prior_components)
        elif self.prior == "vamp":
            self.pseudo_inputs = PseudoInputs(
                self.prior_components, self.image_size, self.channels
            )
        self.decoder = Decoder(
            self.image_size,
            self.channels,
            self.widths,
            self.decoder_blocks,
            self.bottleneck,
            self.norm,
            self.remat,
            self.dtype,
        )

    def encode(self, images: jax.Array, train: bool = False) -> GaussianMixture:
        """Images [B, H, W, C] in [-1, 1] to posteriors q(z|x) of leading shape [B], float32."""
        features = self.encoder(images, train)
        return self.head(features.reshape(features.shape[0], -1))

    def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Latent vectors [..., D] to images [..., H, W, C], float32, about [-1, 1]."""
        images = self.decoder(z.reshape(-1, z.shape[-1]), train)
        return images.reshape(*z.shape[:-1], *images.shape[1:])

    def latent_prior(self) -> GaussianMixture:
        """p(z), a mixture without leading axes: `log_prob` scores, `sample` draws."""
        return self.learned_prior() or standard_normal(self.latent_size)

    def learned_prior(self) -> GaussianMixture | None:
        """p(z), a mixture without leading axes, or None where it is N(0, I).

        Pseudo-inputs are all encoded, at each call on each device, with the running
        statistics of batch normalisation: those of the images are left alone.
        """
        if self.prior == "mixture":
            return self.mixture_prior()
        if self.prior == "vamp":
            of_each = self.encode(self.pseudo_inputs())
            return GaussianMixture(
                of_each.log_weights.reshape(-1),
                of_each.mean.reshape(-1, self.latent_size),
                of_each.log_var.reshape(-1, self.latent_size),
            )
        return None

    def __call__(
        self,
        images: jax.Array,
        keys: jax.Array,
        train: bool = False,
        samples: int = 1,
        chunk: int = 0,
    ) -> Autoencoding:
        """Encodes, draws from every component and decodes every draw: the decoder runs on T K times as many images.

        Args:
          images: [B, H, W, C] in [-1, 1].
          keys: [B], one random key an image.
          train: batch normalisation uses and updates the statistics of the batch.
          samples: T, draws from each component.
          chunk: draws of each image that are decoded at a time, a divisor of T K; their
            activations are computed again for the gradient, so that memory is that of
            one chunk. 0 is all at once. Not with batch normalisation.
        """
        posterior = self.encode(images, train)
        z = draw_for_each(posterior, keys, samples)
        if chunk and not self.is_initializing():
            reconstruction = self._decode_in_chunks(z, chunk, train)
        else:
            reconstruction = self.decode(z, train)
        return Autoencoding(posterior, self.learned_prior(), z, reconstruction)

    def _decode_in_chunks(self, z: jax.Array, chunk: int, train: bool) -> jax.Array:
        """`decode` of [T, B, K, D], a scan over chunks of T K, each under `jax.checkpoint`."""
        draws, batch, components, dimensions = z.shape
        chunks = z.swapaxes(1, 2).reshape(-1, chunk, batch, dimensions)

        @nn.remat
        def decode(self: "Autoencoder", carry: None, z: jax.Array):
            return carry, self.decode(z, train)

        scan = nn.scan(
            decode,
            variable_broadcast=["params", "batch_stats"],  # which do not change
            split_rngs={"params": False},
        )
        _, images = scan(self, None, chunks)
        images = images.reshape(draws, components, batch, *images.shape[3:])
        return images.swapaxes(1, 2)
