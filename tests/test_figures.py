"""Pictures."""

import numpy as np

from gamix_jax.figures import image_grid, reconstruction_grid


def test_grid_places_every_image():
    levels = np.array([-1.0, 1.0, 0.0, 5.0, -5.0])  # beyond [-1, 1] is clipped
    picture = np.asarray(
        image_grid(
            np.broadcast_to(levels[:, None, None, None], (5, 40, 40, 1)),
            columns=3,
            tile=32,
        )
    )
    assert picture.shape == (2 * 41 - 1, 3 * 41 - 1)
    middles = picture[20::41][:, 20::41]
    np.testing.assert_array_equal(
        middles, [[0, 255, 128], [255, 0, 255]]
    )  # the sixth place is white
    assert np.all(picture[40] == 255)


def test_small_images_are_enlarged_by_a_whole_factor():
    images = np.random.default_rng(0).uniform(-1, 1, (1, 12, 12, 3))
    picture = np.asarray(image_grid(images, columns=1, tile=32))
    assert picture.shape == (36, 36, 3)  # three times 12 is the first to reach 32
    np.testing.assert_array_equal(picture[::3, ::3], np.rint((images[0] + 1) * 127.5))


def test_reconstructions_stand_below_their_images():
    images = np.linspace(-1, 0, 4)[:, None, None, None] * np.ones((4, 48, 48, 1))
    picture = np.asarray(reconstruction_grid(images, -images, columns=2))
    np.testing.assert_array_equal(
        picture[24::49, 24::49], [[0, 42], [255, 212], [85, 128], [170, 128]]
    )
