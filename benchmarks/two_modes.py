"""Two modes: what a posterior of two Gaussians gains where the truth has two modes, x = |z| + noise.

    pip install -e '.[benchmarks]'
    python benchmarks/two_modes.py --out=docs

The model is known: z ~ N(0, 1), x = |z| + 0.3 noise; so are its evidence log p(x) and its
posterior, by quadrature. An encoder of two layers learns q(z|x) for all x at once with
K = 1 and with K = 2, maximising the package's stratified ELBO and nothing else. One
Gaussian can sit on one mode only and loses log 2 = 0.69 nats where the modes are apart;
two lose nothing. Writes two_modes.png and two_modes.json. 1 minute on 2 CPU cores.
"""

import argparse
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")  # no display is needed
import matplotlib.pyplot as plt
import numpy as np
import optax
import record
from scipy import stats

from gamix_jax import losses
from gamix_jax.mixture import GaussianMixture
from gamix_jax.models.autoencoder import MixtureHead

NOISE, BATCH, STEPS, SAMPLES = 0.3, 256, 3000, 8
GRID = np.linspace(-6, 6, 12_001)


class Encoder(nn.Module):
    """x [B] to q(z|x) of leading shape [B]."""

    components: int

    @nn.compact
    def __call__(self, x: jax.Array) -> GaussianMixture:
        for _ in range(2):
            x = nn.gelu(nn.Dense(64)(x if x.ndim > 1 else x[:, None]))
        return MixtureHead(latent_size=1, components=self.components)(x)


def elbo(q: GaussianMixture, x: jax.Array, key: jax.Array, samples: int) -> jax.Array:
    """[B], nats."""
    z = q.stratified_sample(key, (samples,))
    log_likelihood = jax.scipy.stats.norm.logpdf(
        x[None, :, None], jnp.abs(z[..., 0]), NOISE
    )
    return losses.mixture_elbo(log_likelihood, q, z)


def train(components: int):
    """The encoder as a jitted function after STEPS steps of Adam."""
    encoder = Encoder(components)
    params = encoder.init(jax.random.key(1), jnp.zeros(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def step(carry, key):
        params, state = carry
        keys = jax.random.split(key, 3)
        x = jnp.abs(jax.random.normal(keys[0], (BATCH,)))
        x += NOISE * jax.random.normal(keys[1], (BATCH,))
        gradient = jax.grad(
            lambda params: (
                -jnp.mean(elbo(encoder.apply(params, x), x, keys[2], SAMPLES))
            )
        )(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimizer.init(params))
    )
    return jax.jit(lambda x: encoder.apply(params, x))


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x), [B], and p(z|x) on GRID, [B, grid], by quadrature."""
    joint = stats.norm.pdf(GRID) * stats.norm.pdf(x[:, None], np.abs(GRID), NOISE)
    evidence = joint.sum(1) * (GRID[1] - GRID[0])
    return np.log(evidence), joint / evidence[:, None]


def density(q: GaussianMixture) -> np.ndarray:
    """q(z|x) on GRID, [B, grid]."""
    points = jnp.asarray(GRID, jnp.float32)[:, None, None]
    points = jnp.broadcast_to(points, (len(GRID), q.logits.shape[0], 1))
    return np.exp(np.asarray(q.log_prob(points))).T


def draw(x, posterior, gaps, fitted, path: Path) -> None:
    """Left the truth at three x beside both fits; right the gap to the evidence over x."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.8), layout="constrained")
    for axis, value in zip(axes, (0.3, 1.0, 2.0), strict=False):
        i = int(np.argmin(np.abs(x - value)))
        axis.fill_between(GRID, posterior[i], color="0.85", label="p(z|x)")
        for components, q in fitted.items():
            axis.plot(GRID, density(q)[i], label=f"q(z|x), K = {components}")
        axis.set(title=f"x = {x[i]:.1f}", xlim=(-3.2, 3.2), xlabel="z", yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    for components, gap in gaps.items():
        axes[3].plot(x, gap, label=f"K = {components}")
    axes[3].axhline(math.log(2), color="0.6", linestyle=":")
    axes[3].text(x[-1], math.log(2) + 0.02, "log 2", ha="right", color="0.4")
    axes[3].set(title="log p(x) - ELBO, nats", xlabel="x", ylim=(-0.03, 0.9))
    axes[3].legend(frameon=False, fontsize=8, loc="center right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    out = parser.parse_args().out
    x = np.linspace(0.0, 2.5, 51)
    evidence, posterior = exact(x)
    fitted, gaps = {}, {}
    for components in (1, 2):
        q = train(components)(jnp.asarray(x, jnp.float32))
        bound = elbo(q, jnp.asarray(x, jnp.float32), jax.random.key(2), 20_000)
        fitted[components], gaps[components] = q, evidence - np.asarray(bound)
    apart = x >= 1.0
    means = {k: float(np.mean(gap[apart])) for k, gap in gaps.items()}
    closed = (means[1] - means[2]) / math.log(2)
    print("mean gap log p(x) - ELBO over x in [1, 2.5], nats")
    for components, gap in means.items():
        print(f"  K = {components}: {gap:.4f}")
    print(f"K = 2 closes {closed:.1%} of log 2")
    draw(x, posterior, gaps, fitted, out / "two_modes.png")
    result = {"mean_gap_nats": means, "share_of_log_2_closed": closed}
    record.write(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
