"""The networks: ResNetV2 encoder and decoder, their assembly into an autoencoder, and the PatchGAN discriminator."""

from gamix_jax.models.autoencoder import Autoencoder, Autoencoding, draw_for_each
from gamix_jax.models.patchgan import PatchDiscriminator
from gamix_jax.models.resnet_v2 import Decoder, Encoder

__all__ = [
    "Autoencoder",
    "Autoencoding",
    "Decoder",
    "Encoder",
    "PatchDiscriminator",
    "draw_for_each",
]
