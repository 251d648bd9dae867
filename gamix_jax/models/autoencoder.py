"""The autoencoder: ResNetV2 both ways, with a Gaussian-mixture posterior between."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gamix_jax.mixture import GaussianMixture
from gamix_jax.models.normalization import Norm
from gamix_jax.models.resnet_v2 import Decoder, Encoder


class MixtureHead(nn.Module):
    """Features to the parameters of a Gaussian mixture, by one dense layer each, in float32.

    Attributes:
      latent_size: D.
      components: K; with one component there are no logits to learn.
    """

    latent_size: int
    components: int = 1

    @nn.compact
    def __call__(self, features: jax.Array) -> GaussianMixture:
        """[B, F] to a mixture of leading shape [B]."""
        features = features.astype(jnp.float32)
        shape = (features.shape[0], self.components, self.latent_size)
        mean = nn.Dense(self.components * self.latent_size, name="mean")(
            features
        ).reshape(shape)
        log_var = nn.Dense(self.components * self.latent_size, name="log_var")(
            features
        ).reshape(shape)
        if self.components == 1:
            return GaussianMixture(jnp.zeros(shape[:2]), mean, log_var)
        return GaussianMixture(
            nn.Dense(self.components, name="logits")(features), mean, log_var
        )


class Autoencoder(nn.Module):
    """Encoder, mixture head and decoder.

    Attributes:
      image_size: height and width, pixels; a multiple of 2^len(widths).
      channels: 1 or 3.
      latent_size: D.
      components: K.
      widths: channels of each stage, encoder's order.
      encoder_blocks, decoder_blocks: residual blocks a stage.
      bottleneck: channels of the feature maps next to the latent vector.
      norm: "batch", "group" or "affine" (see `Normalization`).
      input_norm: see `Encoder`.
      dtype: of the computation, float32 or bfloat16; parameters and posterior are
        float32.
    """

    image_size: int
    channels: int
    latent_size: int
    components: int
    widths: Sequence[int]
    encoder_blocks: int = 2
    decoder_blocks: int = 1
    bottleneck: int = 64
    norm: Norm = "batch"
    input_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(
            self.widths,
            self.encoder_blocks,
            self.bottleneck,
            self.norm,
            self.input_norm,
            self.dtype,
        )
        self.head = MixtureHead(self.latent_size, self.components)
        self.decoder = Decoder(
            self.image_size,
            self.channels,
            self.widths,
            self.decoder_blocks,
            self.bottleneck,
            self.norm,
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

    def __call__(
        self, images: jax.Array, keys: jax.Array, train: bool = False
    ) -> tuple[GaussianMixture, jax.Array, jax.Array]:
        """Encodes, draws from every component and decodes every draw: the decoder runs on K times as many images.

        Args:
          images: [B, H, W, C] in [-1, 1].
          keys: [B], one random key an image, so that the noise does not depend on how a
            batch is spread over devices.
          train: batch normalisation uses and updates the statistics of the batch.

        Returns:
          The posterior of leading shape [B], z [B, K, D] and the reconstructions [B, K,
          H, W, C].
        """
        posterior = self.encode(images, train)
        z = jax.vmap(GaussianMixture.stratified_sample)(posterior, keys)
        return posterior, z, self.decode(z, train)
