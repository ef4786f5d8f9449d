"""The objective against its closed form for Gaussian data, where the best network is linear and its loss is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.losses import WEIGHTINGS, Objective, uniform_time
from score_sde.sde import PROCESSES
from tests import oracles

MEAN, STD, SHAPE = 0.4, 0.7, (2, 2)
DRAWS = 20_000
T_MIN = 0.02  # the likelihood weighting grows as 1/t towards 0: its Monte-Carlo variance is kept finite here
NAMES = sorted(PROCESSES)
battery = pytest.mark.parametrize(
    ("name", "weighting"), [(name, weighting) for name in NAMES for weighting in sorted(WEIGHTINGS)]
)


@functools.cache
def _draws(name, weighting):
    """Per-sample losses and their gradients at the exact denoiser, and losses beside it, for one set of draws.

    The network is ε̂ = (1 + θ) ε̂_exact + φ: θ = φ = 0 is exact.
    """
    sde = PROCESSES[name](t_min=T_MIN)
    exact = oracles.gaussian(MEAN, STD, SHAPE).denoiser(sde)

    def loss(parameters, x_0, keys):
        theta, phi = parameters
        function = lambda x, t, condition: (1 + theta) * exact.epsilon(x, t) + phi
        return Objective(weighting=weighting)(
            Denoiser(sde=sde, function=function, prediction="epsilon"), x_0, None, keys
        )

    def evaluate(x_0, keys):
        zero = jnp.zeros(2)
        one = lambda x, key: jax.grad(lambda parameters: loss(parameters, x[None], key[None])[0])(zero)
        shifted = {"theta": loss(jnp.asarray([0.3, 0.0]), x_0, keys), "phi": loss(jnp.asarray([0.0, 0.3]), x_0, keys)}
        return loss(zero, x_0, keys), jax.vmap(one)(x_0, keys), shifted

    keys = rng.for_samples(rng.stream(0, "loss"), jnp.arange(DRAWS))
    x_0 = MEAN + STD * rng.normal(rng.for_samples(rng.stream(0, "data"), jnp.arange(DRAWS)), SHAPE)
    return sde, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.jit(evaluate)(x_0, keys))


@functools.cache
def _nodes(sde):
    """Weights of a quadrature of E_t, t ~ U(t_min, T), in log t, where all here is smooth; and α, σ, g there."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    low, high = np.log(sde.t_min), np.log(sde.T)
    t = np.exp(low + (high - low) * (nodes + 1) / 2)
    with jax.enable_x64(True):
        levels = jax.jit(lambda t: (sde.alpha(t), sde.sigma(t), sde.diffusion_coefficient(t)))(jnp.asarray(t))
    return weights * t * (high - low) / 2 / (sde.T - sde.t_min), *(np.asarray(level) for level in levels)


def _expected(sde, weighting, integrand):
    """E_t w(t) integrand(α, σ), w as `losses` documents it."""
    weights, alpha, sigma, g = _nodes(sde)
    w = {"sigma2": 1.0, "likelihood": g**2 / sigma**2}[weighting]
    return weights @ (w * integrand(alpha, sigma))


def _close(values, expected):
    """Whether the mean of values is `expected` within 5 standard errors."""
    return abs(values.mean() - expected) < 5 * values.std() / np.sqrt(len(values))


@battery
def test_the_loss_at_the_exact_denoiser_is_the_closed_form_minimum(name, weighting):
    """E|ε − E[ε|x_t]|² is Var(ε | x_t) = α² s² / (α² s² + σ²) for data of variance s²."""
    sde, (loss, _, _) = _draws(name, weighting)
    expected = _expected(sde, weighting, lambda alpha, sigma: (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2))
    assert loss.shape == (DRAWS,)
    assert _close(loss, expected)


@battery
def test_the_gradient_vanishes_at_the_exact_denoiser(name, weighting):
    _, (_, gradient, _) = _draws(name, weighting)
    assert _close(gradient[:, 0], 0)
    assert _close(gradient[:, 1], 0)


@battery
def test_a_wrong_denoiser_pays_the_closed_form_excess(name, weighting):
    """ε̂ + θ ε̂ costs θ² E ε̂² = θ² σ²/(α² s² + σ²) more, ε̂ + φ costs φ² more, each weighted by w."""
    sde, (loss, _, shifted) = _draws(name, weighting)
    scaled = _expected(sde, weighting, lambda alpha, sigma: 0.3**2 * sigma**2 / ((alpha * STD) ** 2 + sigma**2))
    assert _close(shifted["theta"] - loss, scaled)
    assert _close(shifted["phi"] - loss, _expected(sde, weighting, lambda alpha, sigma: 0.3**2 + 0 * sigma))


@pytest.mark.parametrize("name", NAMES)
def test_times_are_uniform(name):
    sde = PROCESSES[name]()
    t = np.asarray(uniform_time(sde, rng.for_samples(rng.stream(0, "time"), jnp.arange(4000))), np.float64)
    assert t.min() >= np.float32(sde.t_min)
    assert t.max() <= sde.T
    assert scipy.stats.kstest(t, "uniform", (sde.t_min, sde.T - sde.t_min)).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_weightings_are_the_documented_ones(name):
    """λ(t) = σ² w(t) is σ² for sigma2 and g² for likelihood; g² is −σ² d log_snr/dt, by a central difference."""
    sde, h = PROCESSES[name](), 1e-5
    t = np.linspace(0.05, 0.95, 7)
    with jax.enable_x64(True):
        time = jnp.asarray(t)
        weights = {key: np.asarray(WEIGHTINGS[key](sde, time)) for key in WEIGHTINGS}
        slope = np.asarray(sde.log_snr(time + h) - sde.log_snr(time - h)) / (2 * h)
    np.testing.assert_array_equal(weights["sigma2"], 1)
    np.testing.assert_allclose(weights["likelihood"], -slope, rtol=1e-6)  # h² of the difference, over t² ≥ 0.0025


def test_a_samples_loss_does_not_depend_on_its_batch():
    sde = PROCESSES["vp"]()
    denoiser = oracles.gaussian(MEAN, STD, SHAPE).denoiser(sde)
    keys = rng.for_samples(rng.stream(0, "loss"), jnp.arange(8))
    x_0 = jnp.linspace(-1, 1, 32).reshape(8, *SHAPE)
    loss = jax.jit(lambda x_0, keys: Objective()(denoiser, x_0, None, keys))
    # The same float32 operations, fused differently for another batch size.
    np.testing.assert_allclose(loss(x_0, keys)[3:4], loss(x_0[3:4], keys[3:4]), rtol=1e-5)


def test_the_condition_reaches_the_denoiser():
    sde = PROCESSES["vp"]()
    denoiser = Denoiser(sde=sde, function=lambda x, t, c: 0 * x + c[:, None], prediction="epsilon")
    keys = rng.for_samples(rng.stream(0, "loss"), jnp.arange(2))
    losses = [Objective()(denoiser, jnp.zeros((2, 3)), jnp.full(2, c), keys) for c in (0.0, 100.0)]
    # (100 − ε)² against ε²: 10⁴ − 200 ε.
    assert np.all(np.asarray(losses[1] - losses[0]) > 9000)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(UserError, match=r"unknown weighting 'sigma_2'.*did you mean 'sigma2'"):
        Objective(weighting="sigma_2")
