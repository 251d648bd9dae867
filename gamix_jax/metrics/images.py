"""Numbers for each image: sharpness, and how far it is from another. Images are in [-1, 1]; all can be jitted."""

import chex
import dm_pix
import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
WINDOW, SIGMA = 11, 1.5  # pixels, Wang et al. 2004


def laplacian_variance(images: jax.Array) -> jax.Array:
    """Sharpness: the variance of the 3x3 Laplacian ([0, 1, 0], [1, -4, 1], [0, 1, 0]) of the grey image in levels 0..255.

    Of colour the luma is taken. The Laplacian is computed where it lies within the
    image. Noise is sharp too: compare with the value of real images.

    Args:
      images: [N, H, W, C], C 1 or 3, H and W at least 3.

    Returns:
      [N], squared levels.
    """
    chex.assert_rank(images, 4)
    chex.assert_axis_dimension_gt(images, 1, 2)
    chex.assert_axis_dimension_gt(images, 2, 2)
    levels = 127.5 * (images.astype(jnp.float32) + 1.0)
    grey = _grey(levels)
    laplacian = (
        grey[:, :-2, 1:-1]
        + grey[:, 2:, 1:-1]
        + grey[:, 1:-1, :-2]
        + grey[:, 1:-1, 2:]
        - 4.0 * grey[:, 1:-1, 1:-1]
    )
    return jnp.var(laplacian, axis=(1, 2))


def _grey(images: jax.Array) -> jax.Array:
    if images.shape[3] == 1:
        return images[..., 0]
    chex.assert_axis_dimension(images, 3, 3)
    # No matrix product, whose factors accelerators would round.
    return sum(weight * images[..., i] for i, weight in enumerate(LUMA))


def squared_error(images: jax.Array, others: jax.Array) -> jax.Array:
    """Mean over pixels and channels of the squared difference: [N, H, W, C] twice to [N]."""
    chex.assert_equal_shape([images, others])
    difference = images.astype(jnp.float32) - others.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=(1, 2, 3))


def psnr(images: jax.Array, others: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, dB, of a range of 2: [N, H, W, C] twice to [N]; of equal images infinite."""
    return 10.0 * jnp.log10(4.0 / squared_error(images, others))


def ssim(images: jax.Array, others: jax.Array) -> jax.Array:
    """Structural similarity (Wang et al. 2004) of each image, by dm-pix, averaged over channels.

    With a Gaussian window of WINDOW pixels, where that lies within the image; of smaller
    images it has the largest odd number of pixels that does. The images are first
    shifted to [0, 2], since the index is defined for levels from 0.

    Args:
      images: [N, H, W, C].
      others: the same shape.

    Returns:
      [N], at most 1.
    """
    chex.assert_rank(images, 4)
    smaller = min(images.shape[1:3])
    return dm_pix.ssim(
        images.astype(jnp.float32) + 1.0,
        others.astype(jnp.float32) + 1.0,
        max_val=2.0,
        filter_size=min(WINDOW, smaller - 1 + smaller % 2),
        filter_sigma=SIGMA,
    )
