"""Bits/dim of discrete data: the constants of the scaling, dequantisation through to the entropy, several draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from score_sde import rng
from score_sde.data import Levels
from score_sde.denoiser import Denoiser
from score_sde.likelihood import bits_per_dim, importance_weighted, log_likelihood
from score_sde.sde import PROCESSES


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("number", [2, 17, 256])
@pytest.mark.parametrize("dimensions", [1, 64, 3072])
def test_a_uniform_density_costs_log2_of_the_levels(low, high, number, dimensions):
    """Density (high − low)^−D: log₂ K bits a value, whatever the data."""
    log_prob = jnp.full(3, -dimensions * np.log(high - low), jnp.float32)
    bits = bits_per_dim(log_prob, dimensions, Levels(number, low, high).width)
    # log p is of size 2000 at D = 3072: relative float32 rounding.
    np.testing.assert_allclose(bits, np.log2(number), rtol=1e-6)


def test_a_piecewise_constant_density_costs_the_discrete_log_probability():
    """p_X = P(k) K/2 on the interval of k: bits/dim is −log₂ P(k), and on average the entropy."""
    probability = np.array([0.5, 0.25, 0.125, 0.125])
    log_prob = jnp.asarray(np.log(probability * 4 / 2), jnp.float32)
    bits = np.asarray(bits_per_dim(log_prob, 1, Levels(4).width))
    np.testing.assert_allclose(bits, [1, 2, 3, 3], rtol=1e-6)
    assert (probability * bits).sum() == pytest.approx(1.75, rel=1e-6)


def test_bits_per_dim_of_independent_values_is_their_mean():
    probability = np.array([0.5, 0.125])
    log_prob = jnp.asarray([np.log(probability * 8 / 2).sum()], jnp.float32)
    assert float(bits_per_dim(log_prob, 2, Levels(8).width)[0]) == pytest.approx((1 + 3) / 2, rel=1e-6)


def _steps_denoiser(sde, edges, probability):
    """The exact network of ε for one value whose density is constant between `edges`, P(k) in interval k.

    p_t(x) = Σ_k P(k) (Φ(a_k) − Φ(b_k))/(α w_k), a and b the standardised distances to an interval's ends.
    """
    low, high = (jnp.asarray(side, jnp.float32) for side in (edges[:-1], edges[1:]))
    log_height = jnp.asarray(np.log(probability / np.diff(edges)), jnp.float32)

    def log_density(x, alpha, sigma):
        a, b = (x - alpha * low) / sigma, (x - alpha * high) / sigma  # a > b
        # Φ(a) − Φ(b) from the side where both are small, and over a short interval, which at T all are, by the midpoint
        # and the second derivative, instead of a difference of near-equal numbers.
        flip = a + b > 0
        upper, lower = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
        middle, short = 0.5 * (upper + lower), upper - lower < 0.1
        log_upper, log_lower = (
            jax.scipy.special.log_ndtr(jnp.where(short, side, v)) for side, v in ((0.0, upper), (-1.0, lower))
        )
        far = log_upper + jnp.log1p(-jnp.exp(log_lower - log_upper))
        width = upper - lower
        near = (
            -0.5 * middle**2 - 0.5 * jnp.log(2 * jnp.pi) + jnp.log(width) + jnp.log1p((middle**2 - 1) * width**2 / 24)
        )
        return jax.nn.logsumexp(jnp.where(short, near, far) + log_height - jnp.log(alpha))

    def epsilon(x_t, t, condition):
        score = jax.vmap(jax.grad(log_density))(x_t[:, 0], sde.alpha(t), sde.sigma(t))
        return -(sde.sigma(t) * score)[:, None]

    return Denoiser(sde=sde, function=epsilon, prediction="epsilon")


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("probability", [np.ones(1), np.array([0.5, 0.25, 0.125, 0.125])], ids=["uniform", "known"])
def test_discrete_data_cost_their_entropy(low, high, probability):
    """From levels to bits, through dequantisation, the ODE and the scaling: 8 for 256 levels, each as often as any
    other; 1.75 for four levels as often as their probabilities.

    The noise left at t_min, σ̄ = 1e-3, rounds off each jump of the density: near an outer edge it falls to half, Φ(z),
    and the integral of −log Φ over z > 0 is below 0.6; times σ̄ over the range that is 1e-3 nats, and inner jumps are
    like it. The mean over 2048 draws of log p, whose spread comes from there alone, adds less. 0.01 bits holds all.
    """
    known = len(probability) > 1
    levels = Levels(4 if known else 256, low, high)
    counts = (2048 * probability).astype(int) if known else np.full(256, 8)
    level = jnp.asarray(np.repeat(np.arange(len(counts)), counts)[:, None], jnp.uint8)
    edges = np.linspace(low, high, len(probability) + 1)
    denoiser = _steps_denoiser(PROCESSES["vp"](), edges, probability)

    def bits(level, keys):
        x = levels.dequantise(level, rng.child(keys, 0))
        result = log_likelihood(denoiser, x, rng.child(keys, 1), rtol=1e-4, atol=1e-4)
        return bits_per_dim(result.log_prob, 1, levels.width), result.failed

    value, failed = jax.device_get(jax.jit(bits)(level, rng.for_samples(rng.stream(0, "probe"), jnp.arange(2048))))
    assert not failed.any()
    entropy = -np.sum(probability * np.log2(probability)) if known else 8
    assert value.astype(np.float64).mean() == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize("draws", [1, 4, 256])
def test_importance_weighting_recovers_the_probability_of_a_level(draws):
    """For p_X = N(0, 0.3²) and 4 levels in [−1, 1), P(k) is known. E of the K-draw bound lies below log P(k) by
    Var(r)/(2 K) + O(K⁻²), r the ratio of density to mean: at K = 256 by less than 1e-3 + its Monte-Carlo error."""
    levels, level = Levels(4), np.array([0, 1])
    edges = np.linspace(-1, 1, 5)
    exact = np.log(np.diff(scipy.special.ndtr(edges / 0.3)))[level]
    batch = min(20_000, 512_000 // draws)
    generator = np.random.default_rng(0)
    u = jnp.asarray(generator.random((draws, batch, 2)), jnp.float32)
    x = jax.vmap(levels.place, in_axes=(None, 0))(jnp.broadcast_to(jnp.asarray(level), (batch, 2)), u)
    log_p = -0.5 * (x / 0.3) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(0.3)
    estimate = np.asarray(importance_weighted(log_p.reshape(draws, -1)), np.float64).reshape(batch, 2)
    estimate = estimate + np.log(levels.width)
    gap, error = exact - estimate.mean(axis=0), estimate.std(axis=0) / np.sqrt(batch)
    nodes = (np.arange(10_000) + 0.5) / 10_000
    for k in (0, 1):
        at = levels.low + levels.width * (level[k] + nodes)
        log_at = -0.5 * (at / 0.3) ** 2
        ratio = np.exp(log_at) / np.exp(log_at).mean()
        if draws == 1:  # uniform dequantisation's own bound: the gap is a KL
            assert abs(gap[k] + np.log(ratio).mean()) < 5 * error[k]
        elif draws == 4:
            assert gap[k] > 5 * error[k]  # still below, and above the single draw's
            assert gap[k] < -np.log(ratio).mean()
        else:
            assert abs(gap[k] - ratio.var() / (2 * draws)) < 5 * error[k] + ratio.var() ** 2 / draws
