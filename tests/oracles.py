"""The mathematics once more, in float64 numpy and scipy, written apart from the package and as plainly as it can be."""

import numpy as np
from scipy import stats


def softmax(logits):
    e = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def mixture_density(z, logits, mean, log_var):
    """One mixture at one point: z [D], logits [K], mean and log_var [K, D]."""
    return sum(
        weight * np.prod(stats.norm.pdf(z, m, np.exp(0.5 * s)))
        for weight, m, s in zip(
            softmax(logits), np.float64(mean), np.float64(log_var), strict=True
        )
    )


def log_prob(z, logits, mean, log_var):
    """[N, D] points in [N] mixtures; by logarithms, so that far points do not underflow."""
    result = []
    for zi, li, mi, si in zip(
        *(np.float64(x) for x in (z, logits, mean, log_var)), strict=True
    ):
        terms = [
            np.log(w) + stats.norm.logpdf(zi, m, np.exp(0.5 * s)).sum()
            for w, m, s in zip(softmax(li), mi, si, strict=True)
        ]
        result.append(np.logaddexp.reduce(terms))
    return np.array(result)


def aggregate_moments(logits, mean, log_var):
    """m, within and between of N mixtures [N, K(, D)]: sums over an explicit list of all N K weighted Gaussians."""
    weights = softmax(logits) / len(logits)
    m = np.zeros(mean.shape[-1])
    within, between = m.copy(), m.copy()
    for i, k in np.ndindex(weights.shape):
        m += weights[i, k] * np.float64(mean[i, k])
    for i, k in np.ndindex(weights.shape):
        within += weights[i, k] * np.exp(np.float64(log_var[i, k]))
        between += weights[i, k] * (np.float64(mean[i, k]) - m) ** 2
    return m, within, between


def aggregate_kl(m, v):
    """KL(N(m, diag v) || N(0, I)), as -entropy + cross-entropy."""
    entropy = 0.5 * np.sum(np.log(2 * np.pi * np.e * v))
    cross = 0.5 * np.sum(np.log(2 * np.pi) + v + m**2)
    return cross - entropy


def collapse_penalty(logits, log_var, target):
    """[N]: twice the KL divergence of N(0, exp s) from N(0, target), summed over dimensions, averaged over components."""
    variance = np.exp(np.float64(log_var))
    kl = 0.5 * (variance / target - 1 + np.log(target) - np.log(variance))
    return np.sum(softmax(logits) * 2 * kl.sum(-1), axis=-1)


def covariance(logits, mean, log_var):
    """[D, D] covariance of the aggregate of N mixtures: a sum over all N K weighted Gaussians."""
    weights = softmax(logits) / len(logits)
    m, _, _ = aggregate_moments(logits, mean, log_var)
    result = np.zeros((len(m), len(m)))
    for i, k in np.ndindex(weights.shape):
        deviation = np.float64(mean[i, k]) - m
        result += weights[i, k] * (
            np.outer(deviation, deviation) + np.diag(np.exp(np.float64(log_var[i, k])))
        )
    return result


def full_kl(m, c):
    """KL(N(m, C) || N(0, I)) by scipy's entropy of a normal distribution."""
    cross = 0.5 * (len(m) * np.log(2 * np.pi) + np.trace(c) + m @ m)
    return cross - stats.multivariate_normal(m, c).entropy()


def log_ratio(log_likelihood, logits, mean, log_var, z):
    """log p(x|z) + log p(z) - log q(z|x), prior N(0, I): [T, N, K]."""
    result = np.zeros(z.shape[:3])
    for t, i, k in np.ndindex(result.shape):
        log_q = log_prob(
            z[t, i, k][None], logits[i][None], mean[i][None], log_var[i][None]
        )[0]
        log_prior = stats.norm.logpdf(np.float64(z[t, i, k])).sum()
        result[t, i, k] = log_likelihood[t, i, k] + log_prior - log_q
    return result


def mixture_elbo(log_likelihood, logits, mean, log_var, z):
    """[N]."""
    ratio = log_ratio(log_likelihood, logits, mean, log_var, z)
    return np.einsum("nk,tnk->n", softmax(logits), ratio) / len(z)


def mixture_siwae(log_likelihood, logits, mean, log_var, z):
    """[N]."""
    ratio = np.exp(log_ratio(log_likelihood, logits, mean, log_var, z))
    return np.log(np.einsum("nk,tnk->n", softmax(logits), ratio) / len(z))


def hinge_discriminator_loss(real, fake):
    return np.mean(np.maximum(0, 1 - np.float64(real))) + np.mean(
        np.maximum(0, 1 + np.float64(fake))
    )


def bce_discriminator_loss(real, fake):
    return -np.mean(stats.logistic.logcdf(np.float64(real))) - np.mean(
        stats.logistic.logsf(np.float64(fake))
    )


def gradient(function, x, step=1e-6):
    """Central differences of a scalar function of one float64 array."""
    x = np.array(x, np.float64)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        result[index] = (function(high) - function(low)) / (2 * step)
    return result
