"""Distances of features against torch-fidelity and torchmetrics, where these are installed; neither torchvision nor weights are wanted."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from test_metrics_frechet import distance, random_features

from gamix_jax.metrics.kernel import kernel_distance, squared_mmd
from gamix_jax.metrics.manifold import manifold

torch = pytest.importorskip("torch")


def features():
    """Two sets of 400 images in 16 dimensions that overlap, float32."""
    x = random_features(0, count=400, dimensions=16)
    y = 1.0 + 0.8 * random_features(0, count=800, dimensions=16)[400:]
    return x.astype(np.float32), y.astype(np.float32)


@pytest.fixture
def fidelity(monkeypatch):
    """Imports a module of torch-fidelity's metrics without what loads images and networks."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package, utils = (
        types.ModuleType(name) for name in ("torch_fidelity", "torch_fidelity.utils")
    )
    package.__path__ = spec.submodule_search_locations
    for name in (
        "cache_lookup_one_recompute_on_miss",
        "create_feature_extractor",
        "extract_featuresdict_from_input_id_cached",
        "get_cacheable_input_name",
        "resolve_feature_extractor",
        "resolve_feature_layer_for_metric",
    ):
        setattr(utils, name, None)
    for module in (package, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [x for x in sys.modules if x.startswith("torch_fidelity.")]:
        monkeypatch.delitem(sys.modules, name)


def test_frechet_is_that_of_torch_fidelity(fidelity):
    module = fidelity("metric_fid")
    x, y = (torch.from_numpy(a.astype(np.float64)) for a in features())
    statistics = [module.fid_features_to_statistics(a) for a in (x, y)]
    expected = module.fid_statistics_to_metric(*statistics, verbose=False)
    np.testing.assert_allclose(
        distance(*features()), expected["frechet_inception_distance"], rtol=1e-9
    )


def test_kernel_distance_is_that_of_torch_fidelity(fidelity):
    module = fidelity("metric_kid")
    x, y = (a.astype(np.float64) for a in features())
    np.testing.assert_allclose(squared_mmd(x, y), module.kernel_mmd(x, y), rtol=1e-9)
    expected = module.kid_features_to_metric(
        *map(torch.from_numpy, (x, y)),
        kid_subsets=100,
        kid_subset_size=100,
        rng_seed=0,
        verbose=False,
    )
    ours = kernel_distance(x, y, subset_size=100)
    # The same images, other subsets: four standard errors of the difference of means.
    spread = expected["kernel_inception_distance_std"] * np.sqrt(2 / 100)
    difference = ours.value - expected["kernel_inception_distance_mean"]
    assert abs(difference) < 4 * spread


@pytest.mark.parametrize("in_parts", [False, True])
def test_precision_and_recall_are_those_of_torch_fidelity(fidelity, in_parts):
    fake, real = features()
    expected = fidelity("metric_prc").prc_features_to_metric(
        *(torch.from_numpy(a.astype(np.float64)) for a in (fake, real)),
        prc_neighborhood=3,
        prc_batch_size=150,
        save_cpu_ram=in_parts,
        verbose=False,
    )
    ours = manifold(real, fake)
    assert 0.05 < expected["precision"] != expected["recall"] < 0.95
    np.testing.assert_allclose(ours.precision.value, expected["precision"], rtol=1e-6)
    np.testing.assert_allclose(ours.recall.value, expected["recall"], rtol=1e-6)


@pytest.mark.usefixtures("fidelity")  # which torchmetrics imports
def test_kernel_and_frechet_are_those_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = (torch.from_numpy(a.astype(np.float64)) for a in features())
    np.testing.assert_allclose(
        squared_mmd(x.numpy(), y.numpy()), kid.poly_mmd(x, y), rtol=1e-9
    )
    moments = [a for z in (x, y) for a in (z.mean(0), torch.cov(z.T))]
    np.testing.assert_allclose(
        distance(*features()), fid._compute_fid(*moments), rtol=1e-9
    )
