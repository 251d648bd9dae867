"""What is measured of a trained model, side by side with the images that it never saw."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gamix_jax import data, passes
from gamix_jax.errors import InputError, make_folder
from gamix_jax.feature_sets import FeatureSet, compare, features_of_real
from gamix_jax.features import open_features
from gamix_jax.metrics.averages import Averages
from gamix_jax.metrics.detection import Detection, detection
from gamix_jax.metrics.estimate import Estimate
from gamix_jax.metrics.frechet import BLOCKS
from gamix_jax.metrics.latents import accuracy_by_labels, sliced_wasserstein
from gamix_jax.parallel import map_over_devices, replicate
from gamix_jax.run_images import MOST_IMAGES, choose, open_other_images, open_run_images
from gamix_jax.sampling import LatentSampler, fit_sampler, prior_sampler
from gamix_jax.state import make_models
from gamix_jax.steps import averaged_variables, make_steps
from gamix_jax.trained import load
from gamix_jax.validate import validate

SCORED_IMAGES = 1_000  # whose likelihood is estimated, draw by draw
DRAWN_AT_ONCE = 1_000  # latent vectors: whatever the devices, the samples are the same


class Options(NamedTuple):
    """What an evaluation is asked for.

    Attributes:
      count: images of each kind (held out, reconstructed, sampled); None is MOST_IMAGES,
        or as many as are held out.
      features: "inception" or "classifier"; "" leaves out what needs features.
      features_file: their weights.
      likelihood_samples: L, draws of z an image.
      ood: a source of other images, "digits", "folder:DIR", "array:FILE" or
        "tfds:NAME"; "" is none.
      data_dir: where the run's data are now; "" is where they were.
      cache: folder of the features of real images.
      seed: of samples and noise.
    """

    count: int | None = None
    features: str = ""
    features_file: str = ""
    likelihood_samples: int = 64
    ood: str = ""
    data_dir: str = ""
    cache: Path = Path("~/.cache/gamix_jax")
    seed: int = 0


class Coded(NamedTuple):
    """What the networks make of the images of a split.

    Attributes:
      averages: over all of them.
      mean, z: of the first MOST_IMAGES, [N, D]; and where each is in the split, `index` [N].
      reconstructions: features of all, where features are wanted.
    """

    averages: Averages
    mean: np.ndarray
    z: np.ndarray
    index: np.ndarray
    reconstructions: FeatureSet | None


class Evaluation:
    """One model under evaluation; each method measures one of its sides.

    Raises:
      InputError: there is no run or no checkpoint, its data, the features' file or the
        other images are missing or do not fit, or fewer images are held out than asked for.
    """

    def __init__(self, workdir: Path, options: Options):
        self.options = options
        self.model = model = load(workdir)
        self.images = open_run_images(model.config, options.data_dir)
        # Of training images as many as are kept, for what is fitted to them.
        self.chosen = {
            "train": choose(self.images["train"], None, "train"),
            "test": choose(self.images["test"], options.count, "test"),
        }
        held_out, least = len(self.chosen["test"]), 2 * BLOCKS
        if held_out < least:
            raise InputError(
                f"An evaluation takes at least {least} held-out images, not {held_out}; raise --count, "
                "or hold out more."
            )
        if options.ood:
            self.images["other"] = open_other_images(
                options.ood, model.config.data, options.data_dir
            )
            self.chosen["other"] = choose(self.images["other"], SCORED_IMAGES, "other")
        # Training may have had more devices for its batch.
        devices = jax.local_device_count()
        of_device = min(
            -(-model.config.train.batch_size // devices), model.images_at_once
        )
        self.batch_size = of_device * devices
        autoencoder, _ = make_models(model.config)
        noise_key, self.sample_key = jax.random.split(jax.random.key(options.seed))
        self.arguments = {
            "variables": averaged_variables(model.state),
            "key": noise_key,
        }
        over_devices = partial(passes.over_devices, arguments=self.arguments)
        self.encode = over_devices(partial(passes.encode_images, autoencoder))
        self.decode = over_devices(partial(passes.decode_latents, autoencoder))
        self.score = partial(passes.score_images, autoencoder)
        self.features = None
        if options.features:
            self.features = open_features(
                options.features,
                Path(options.features_file).expanduser(),
                *model.image_shape[1:],
            )
            make_folder(options.cache.expanduser(), "cache_dir")
            self.extract = passes.over_devices(
                partial(passes.extract_features, self.features), self.features.variables
            )

    def batches(self, split: str, chosen: np.ndarray) -> Iterator[dict]:
        """Batches of images of a split for all devices."""
        batches = data.evaluation_batches(
            self.images[split],
            self.batch_size,
            prefetch=self.model.config.data.prefetch,
            chosen=chosen,
        )
        return passes.with_noise(batches, split)

    def code(self, split: str) -> Coded:
        """Encodes and decodes the images of a split."""
        averages, codes, kept = Averages(), [], 0
        wanted = self.features is not None and split == "test"
        found = FeatureSet(self.features.size) if wanted else None
        for rows in self.encode(self.batches(split, self.chosen[split])):
            levels, z, index = (rows.pop(x) for x in ("reconstruction", "z", "index"))
            if found is not None:
                self.add_features(found, levels)
            if kept < MOST_IMAGES:
                codes.append((rows["mean"], z, index))
                kept += len(index)
            averages.add(rows)
        mean, z, index = (
            np.concatenate(x)[:MOST_IMAGES] for x in zip(*codes, strict=True)
        )
        return Coded(averages, mean, z, index, found)

    def add_features(self, features: FeatureSet, levels: np.ndarray) -> None:
        """Adds those of images, uint8 [n, H, W, C]."""
        for rows in self.extract(passes.array_batches(self.batch_size, image=levels)):
            features.add(rows["features"])

    def measure_images(
        self, coded: Coded, samplers: dict[str, LatentSampler]
    ) -> dict[str, dict[str, Estimate]]:
        """Samples and reconstructions, with training images as a measure of what to expect, against the held-out images."""
        estimate = coded.averages.estimate
        rows = {
            "held-out images": {"sharpness": estimate("sharpness")},
            "training images": {},
            "reconstructions": {
                "sharpness": estimate("reconstruction_sharpness"),
                **{name: estimate(name) for name in ("squared_error", "psnr", "ssim")},
            },
        }
        if self.features:
            compared = partial(
                compare, self.real_features("test"), seed=self.options.seed
            )
            rows["training images"] |= compared(self.real_features("train"))
            rows["reconstructions"] |= compared(coded.reconstructions)
        for name, sampler in samplers.items():
            averages = Averages()
            found = FeatureSet(self.features.size) if self.features else None
            for sampled in self.sample(sampler):
                if found is not None:
                    self.add_features(found, sampled.pop("image"))
                averages.add({"sharpness": sampled["sharpness"]})
            rows[f"samples, {name}"] = {"sharpness": averages.estimate("sharpness")}
            if found is not None:
                rows[f"samples, {name}"] |= compared(found)
        return {name: row for name, row in rows.items() if row}

    def real_features(self, split: str) -> FeatureSet:
        """Of the images chosen of a split."""
        # As many training images: all that is compared depends on the number.
        images = self.images[split]
        chosen = choose(images, len(self.chosen["test"]), split)
        return features_of_real(
            images,
            chosen,
            self.features,
            self.extract,
            self.batches(split, chosen),
            self.options.cache,
        )

    def samplers(self, coded: Coded) -> dict[str, LatentSampler]:
        """The prior, and a Gaussian and a mixture fitted to the codes of training images."""
        return {
            "prior": prior_sampler(self.model.prior),
            "fitted Gaussian": fit_sampler(coded.z, self.options.seed, components=1),
            "fitted mixture": fit_sampler(coded.z, self.options.seed),
        }

    def sample(self, sampler: LatentSampler) -> Iterator[dict[str, np.ndarray]]:
        """As many images as are held out, from one seed."""
        count = len(self.chosen["test"])
        for start in range(0, count, DRAWN_AT_ONCE):
            key = jax.random.fold_in(self.sample_key, start)
            z = np.asarray(sampler.draw(key, min(DRAWN_AT_ONCE, count - start)))
            yield from self.decode(passes.array_batches(self.batch_size, z=z))

    def validated(self) -> dict[str, float]:
        """What a training logs, of the held-out images (`validate.validate`)."""
        eval_step = map_over_devices(make_steps(self.model.config).eval_step)
        batches = self.batches("test", self.chosen["test"])
        return validate(eval_step, replicate(self.model.state), batches)

    def measure_latents(
        self, coded: dict[str, Coded], samplers: dict[str, LatentSampler]
    ) -> dict[str, Any]:
        """How the latent space is used, how far q(z) is from N(0, I), and what it tells of labels."""
        test = coded["test"]
        result = {
            name: value
            for name, value in self.validated().items()
            if name not in ("absolute_error", "squared_error", "psnr", "count")
        }
        result["aggregate_kl_lower_by_fit"] = {
            name: samplers[name].kl_lower_bound(test.z)
            for name in ("fitted Gaussian", "fitted mixture")
        }
        result["sliced_wasserstein"] = sliced_wasserstein(
            test.z, seed=self.options.seed
        )._asdict()
        labels = {split: self.images[split].labels() for split in coded}
        known = labels["train"] is not None and labels["test"] is not None
        if known and len(np.unique(labels["train"][coded["train"].index])) > 1:
            result["accuracy"] = accuracy_by_labels(
                *(x for s in coded for x in (coded[s].mean, labels[s][coded[s].index])),
                seed=self.options.seed,
            )
        result["within_variance"] = test.averages.mean("variance").tolist()
        result["between_variance"] = test.averages.variance("mean").tolist()
        return result

    def measure_likelihood(
        self, scale: float, fitted: LatentSampler
    ) -> tuple[dict[str, Estimate], dict[str, Detection]]:
        """The evidence of held-out images, and how well each score tells other images from them."""
        score = passes.over_devices(
            partial(self.score, self.options.likelihood_samples),
            self.arguments | {"prior": self.model.prior, "scale": np.float32(scale)},
        )
        chosen = self.chosen["test"][:SCORED_IMAGES]
        inside = _joined(score(self.batches("test", chosen)))
        averages = Averages()
        averages.add(
            {
                "log_prob": inside["log_prob"],
                "elbo": inside["reconstruction"] - inside["kl"],
                "elbo_reconstruction": inside["reconstruction"],
                "elbo_kl": inside["kl"],
                "bits_per_dimension": -inside["log_prob"]
                / (math.log(2.0) * math.prod(self.model.image_shape)),
            }
        )
        result = {name: averages.estimate(name) for name in averages.names}
        if "other" not in self.images:
            return result, {}
        outside = _joined(score(self.batches("other", self.chosen["other"])))
        scores = {
            "negative ELBO": lambda rows: rows["kl"] - rows["reconstruction"],
            "reconstruction": lambda rows: -rows["reconstruction"],
            "aggregate log-density": lambda rows: (
                -np.asarray(fitted.log_prob(rows["z"]))
            ),
        }
        return result, {
            name: detection(of(inside), of(outside)) for name, of in scores.items()
        }


def _joined(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
