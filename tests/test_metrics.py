"""Numbers of images, of latent vectors and of anomaly scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from gamix_jax.errors import InputError
from gamix_jax.metrics import images as metrics
from gamix_jax.metrics.detection import detection
from gamix_jax.metrics.estimate import mean_estimate
from gamix_jax.metrics.latents import accuracy_by_labels, sliced_wasserstein

SHAPES = [(size, channels) for size in (8, 32) for channels in (1, 3)]


def pair_of_images(size, channels, count=3):
    """Smooth images in [-1, 1] and noisy ones, float32."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(
        rng.normal(size=(count, size, size, channels)), (0, 2, 2, 0)
    )
    smooth *= 0.8 / np.abs(smooth).max()
    noisy = smooth + 0.1 * rng.normal(size=smooth.shape)
    return smooth.astype(np.float32), noisy.clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_laplacian_is_that_of_scipy(size, channels):
    images, _ = pair_of_images(size, channels)
    levels = 127.5 * (np.float64(images) + 1)
    # luma of ITU-R BT.601, as in Pillow's "L"
    grey = levels @ [0.299, 0.587, 0.114] if channels == 3 else levels[..., 0]
    expected = [np.var(ndimage.laplace(x)[1:-1, 1:-1]) for x in grey]
    actual = jax.jit(metrics.laplacian_variance)(images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_laplacian_by_hand():
    # One pixel of 255 in black: the Laplacian is -1020 there, 255 at its 4 neighbours,
    # 0 at the other 4 of 3x3: its sum is 0.
    image = jnp.full((1, 5, 5, 1), -1.0).at[0, 2, 2].set(1.0)
    expected = (1020**2 + 4 * 255**2) / 9
    np.testing.assert_allclose(metrics.laplacian_variance(image), [expected], rtol=1e-6)


@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_errors_are_those_of_scikit_image(size, channels):
    first, second = pair_of_images(size, channels)
    pairs = list(zip(np.float64(first), np.float64(second), strict=True))
    np.testing.assert_allclose(
        jax.jit(metrics.squared_error)(first, second),
        [skimage.metrics.mean_squared_error(a, b) for a, b in pairs],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jax.jit(metrics.psnr)(first, second),
        [skimage.metrics.peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs],
        rtol=1e-5,
    )
    assert np.all(np.isposinf(metrics.psnr(first, first)))


def plain_ssim(first, second, window):
    """Of levels in [0, 255], by the formulas of Wang et al. 2004, averaged over channels."""
    taps = stats.norm.pdf(np.arange(window) - window // 2, scale=1.5)
    taps = np.outer(taps, taps)[..., None] / taps.sum() ** 2
    mean = lambda x: np.sum(taps * x, axis=(0, 1))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i, j in np.ndindex(2 * (len(first) - window + 1,)):
        x, y = (a[i : i + window, j : j + window] for a in (first, second))
        mx, my = mean(x), mean(y)
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        variances = mean((x - mx) ** 2) + mean((y - my) ** 2)
        covariance = mean((x - mx) * (y - my))
        values.append(luminance * (2 * covariance + c2) / (variances + c2))
    return np.mean(values)


def ssim_of_scikit_image(first, second):
    return skimage.metrics.structural_similarity(
        first,
        second,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )


@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_ssim_is_that_of_scikit_image(size, channels):
    """Of 8x8 images scikit-image has none with a Gaussian window: the plain formula stands in, with 7 taps."""
    images = pair_of_images(size, channels)
    expected = [
        ssim_of_scikit_image(a, b) if size == 32 else plain_ssim(a, b, window=7)
        for a, b in zip(*(127.5 * (np.float64(x) + 1) for x in images), strict=True)
    ]
    np.testing.assert_allclose(jax.jit(metrics.ssim)(*images), expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.ssim(images[0], images[0]), 1.0, rtol=1e-6)


def test_plain_ssim_is_that_of_scikit_image():
    first, second = (127.5 * (np.float64(x[0]) + 1) for x in pair_of_images(16, 3))
    expected = ssim_of_scikit_image(first, second)
    np.testing.assert_allclose(plain_ssim(first, second, 11), expected, rtol=1e-9)


def test_mean_estimate():
    # mean 2, variance (1 + 0 + 1) / 3, of three
    expected = (2.0, np.sqrt(2 / 3 / 3))
    np.testing.assert_allclose(mean_estimate([1, 2, 3]), expected, rtol=1e-12)


def test_sliced_wasserstein_of_the_prior_is_of_its_null():
    """The null's own draws are not the sample's: 20 others lie as they do."""
    z = np.random.default_rng(1).normal(size=(20, 500, 6))
    results = [sliced_wasserstein(x, projections=64) for x in z]
    null_mean, limit = results[0].null_mean, results[0].null_quantile_95
    distances = np.array([result.distance for result in results])
    spread = distances.std()
    # Standard error of the mean of 20, and of the null's 32: 0.29 spreads.
    assert abs(distances.mean() - null_mean) < 3 * 0.29 * spread
    # At most 5 of 20 beyond, where 1 is expected: P = 0.0003.
    assert np.sum(distances > limit) <= 5
    assert null_mean < limit < null_mean + 4 * spread
    assert results[0] == sliced_wasserstein(z[0], projections=64)


def test_sliced_wasserstein_of_a_shift_and_a_scale():
    """E over directions of (m.w)^2 is |m|^2 / D; a scale s moves quantile q by |s - 1| |q|, whose mean square is (s - 1)^2."""
    z = np.random.default_rng(0).normal(size=(20_000, 4))
    shifted = sliced_wasserstein(z + 2 * np.eye(4)[0], projections=1000, null_draws=1)
    # (m.w)^2 / |m|^2 has mean 1/4 and, for D = 4, variance 1/16: over 1,000 directions
    # 3 % of the mean, half of that for the root, here three times; the null adds 0.01.
    np.testing.assert_allclose(shifted.distance, 2 / np.sqrt(4), rtol=0.05)
    scaled = sliced_wasserstein(1.5 * z, null_draws=1)
    # The variance of 20,000 values is known to 1 %, over directions even better.
    np.testing.assert_allclose(scaled.distance, 0.5, rtol=0.03)
    # The quantiles themselves are at no distance, in one dimension.
    quantiles = stats.norm.ppf((np.arange(99) + 0.5) / 99)[:, None]
    exact = sliced_wasserstein(quantiles + 3, null_draws=1).distance
    np.testing.assert_allclose(exact, 3, rtol=1e-6)
    one = sliced_wasserstein(quantiles, null_draws=1)
    assert one.distance < 1e-6 < one.null_mean


def test_accuracy_is_that_of_scikit_learn():
    z, labels = load_digits(return_X_y=True)
    arguments = (z[:1200], labels[:1200], z[1200:], labels[1200:])
    accuracies = accuracy_by_labels(*arguments, counts=(200, 1200, 5000))
    assert list(accuracies) == [200, 1200]
    # Of all labels nothing is chosen, and errors are binomial.
    whole = accuracies[1200]
    nearest = KNeighborsClassifier(5).fit(*arguments[:2]).score(*arguments[2:])
    mean, deviation = z[:1200].mean(0), z[:1200].std(0)
    deviation[deviation == 0] = 1
    scaled = (z - mean) / deviation
    linear = LogisticRegression(max_iter=5000).fit(scaled[:1200], labels[:1200])
    probe = linear.score(scaled[1200:], labels[1200:])
    for estimate, expected in ((whole[0], nearest), (whole[1], probe)):
        # one of 597 images may fall to another side
        assert abs(estimate.value - expected) < 1.5 / 597
        binomial = np.sqrt(estimate.value * (1 - estimate.value) / 597)
        np.testing.assert_allclose(estimate.standard_error, binomial, rtol=1e-9)
    # Fewer labels are worth less, and still more than chance.
    for few, many in zip(accuracies[200], whole, strict=True):
        assert 0.7 < few.value < many.value
    assert accuracies == accuracy_by_labels(*arguments, counts=(200, 1200))
    other = accuracy_by_labels(*arguments, counts=(200,), seed=1)
    assert other[200] != accuracies[200]


def test_accuracy_is_a_mean_over_choices_of_the_labelled():
    """Its standard error is what other choices spread it by (60 of them: 9 %), the codes held fixed; so many test codes add little."""
    rng = np.random.default_rng(0)
    labels = np.arange(4400) % 2
    z = labels[:, None] + rng.normal(0.0, 0.5, (4400, 1))
    split = (z[:400], labels[:400], z[400:], labels[400:])
    estimates = [
        accuracy_by_labels(*split, counts=(10,), seed=seed)[10].nearest_neighbours
        for seed in range(60)
    ]
    values, errors = np.transpose(estimates)
    np.testing.assert_allclose(np.mean(errors), np.std(values), rtol=0.3)


def test_labels_are_chosen_by_class():
    """Codes that are their class: a class of 1 % is found with 10 labels, and only if it was chosen."""
    labels = np.repeat([0, 1, 2], [10, 490, 500])
    z = np.stack([labels, labels], axis=1) * 10.0
    for seed in range(5):
        accuracies = accuracy_by_labels(
            z, labels, z[::10], labels[::10], counts=(10,), seed=seed
        )
        assert accuracies[10].linear_probe == (1, 0)


def test_detection_by_hand():
    # Pairs (out above in): 3 over 1, 2 and 2 (half), 4 over all: of 2 * 3 pairs
    # 3 > {1, 2, 2}: 3; 2 > 1, = 2, = 2: 2. (3 + 2) / 6.
    result = detection([1, 2, 2], [3, 2])
    np.testing.assert_allclose(result.auroc.value, 5 / 6)
    # Thresholds 3, 2: recall 1/2 at precision 1, then recall 1 at precision 2/4.
    np.testing.assert_allclose(result.auprc.value, 0.5 * 1 + 0.5 * 0.5)
    apart = detection([1, 2, -np.inf], [3, np.inf])
    assert apart.auroc == (1, 0)
    assert apart.auprc == (1, 0)


def test_detection_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=400), 1 + rng.normal(size=200)
    result = detection(inside, outside)
    truth = np.r_[np.zeros(400), np.ones(200)]
    scores = np.r_[inside, outside]
    np.testing.assert_allclose(result.auroc.value, roc_auc_score(truth, scores))
    np.testing.assert_allclose(
        result.auprc.value, average_precision_score(truth, scores)
    )
    assert result == detection(inside, outside)
    # The spread over draws: of 300 by sqrt(1 / 600) = 4 %, of 200 resamples 5 %, and
    # the bootstrap of one sample differs from another's by about 5 %: three times all.
    draws = [
        (roc_auc_score(truth, x), average_precision_score(truth, x))
        for x in truth + rng.normal(size=(300, 600))
    ]
    errors = [estimate.standard_error for estimate in result]
    np.testing.assert_allclose(errors, np.std(draws, axis=0), rtol=0.25)


def test_bad_input_is_named():
    z, labels = np.zeros((30, 2)), np.arange(30) % 2
    with pytest.raises(InputError, match="none NaN"):
        detection([0.0, np.nan], [1.0])
    with pytest.raises(InputError, match="other images must be a list"):
        detection([0.0], [])
    with pytest.raises(InputError, match="All labels are the same"):
        accuracy_by_labels(z, 0 * labels, z, labels)
    with pytest.raises(InputError, match="30 codes want 30 labels"):
        accuracy_by_labels(z, labels, z, labels[:5])
    with pytest.raises(InputError, match="want 5 labelled codes or more, not 0"):
        accuracy_by_labels(z, labels, z, labels, counts=(10, 0))
    with pytest.raises(InputError, match="2 and of 3 dimensions"):
        accuracy_by_labels(z, labels, np.zeros((30, 3)), labels)
    with pytest.raises(InputError, match="not finite"):
        sliced_wasserstein(np.full((30, 2), np.inf))
    for shape in ((1, 8, 8, 2), (1, 2, 8, 1)):
        with pytest.raises(AssertionError):
            metrics.laplacian_variance(jnp.zeros(shape))
