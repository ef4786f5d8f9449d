"""The likelihood against exact densities, and the constants that turn it into bits/dim.

`log_likelihood` starts from the prior N(0, σ_T²) where a target has a law p_T of its own, and takes the data at
t_min. Both are exact here: log p(x) − log prior(x_T) + log p_T(x_T) is compared with log p_{t_min}(x).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.likelihood import bits_per_dim, log_likelihood
from score_sde.sde import PROCESSES
from tests import oracles

NAMES = sorted(PROCESSES)
process = pytest.mark.parametrize("name", NAMES)
TOLERANCE = 1e-5

# With a Jacobian that is a multiple of the identity, or in one dimension, Hutchinson's estimate is exact.
TARGETS = {
    "gaussian": oracles.gaussian(0.3, 0.5, (2, 3)),
    "mixture": oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.15, 0.25], (1,)),
    "plane": oracles.mixture([0.4, 0.6], [(-0.5, 0.2), (0.5, -0.1)], [(0.3, 0.2), (0.2, 0.4)], (2,)),
}


def _well_conditioned(oracle, sde):
    """The exact denoiser as a network of ε: as one of x_0 its score would lose 1/σ² float32 digits at t_min."""

    def epsilon(x_t, t, condition):
        score = jax.grad(lambda x: jnp.sum(oracle.log_prob(sde, x, t)))(x_t)
        return -sde.sigma(t).reshape(t.shape + (1,) * (x_t.ndim - 1)) * score

    return Denoiser(sde=sde, function=epsilon, prediction="epsilon")


@functools.cache
def _evaluate(name, target):
    """Jitted (x, keys) -> (LogLikelihood, the same with the exact p_T as prior, exact log p_{t_min})."""
    sde, oracle = PROCESSES[name](), TARGETS[target]
    denoiser = _well_conditioned(oracle, sde)

    def evaluate(x, keys):
        result = log_likelihood(denoiser, x, keys, rtol=TOLERANCE, atol=TOLERANCE)
        at = lambda t: jnp.full(x.shape[0], t, jnp.float32)
        corrected = result.log_prob - sde.prior_log_prob(result.x_T) + oracle.log_prob(sde, result.x_T, at(sde.T))
        return result, corrected, oracle.log_prob(sde, x, at(sde.t_min))

    return jax.jit(evaluate)


def _keys(count, name="probe"):
    return rng.for_samples(rng.stream(0, name), jnp.arange(count))


def _points(oracle, count):
    generator = np.random.default_rng(0)
    component = generator.choice(len(oracle.weights), count, p=oracle.weights)
    noise = generator.normal(size=(count, *oracle.shape))
    return jnp.asarray(oracle.means[component] + oracle.stds[component] * noise, jnp.float32)


@process
@pytest.mark.parametrize("target", ["gaussian", "mixture"])
def test_log_likelihood_is_the_exact_density(name, target):
    """To 1e-3 nats, at local errors of 1e-5 over some tens of steps, for points of the target."""
    result, corrected, exact = _evaluate(name, target)(_points(TARGETS[target], 8), _keys(8))
    assert not np.any(result.failed)
    np.testing.assert_allclose(corrected, exact, rtol=0, atol=1e-3)


@process
def test_the_latent_is_where_the_exact_flow_leads(name):
    sde, oracle = PROCESSES[name](), TARGETS["mixture"]
    x = _points(oracle, 8)
    result, _, _ = _evaluate(name, "mixture")(x, _keys(8))
    exact = oracle.flow(sde, np.asarray(x, np.float64)[:, 0], sde.t_min, sde.T)
    # Local errors of 1e-5, some tens of steps; the flow stretches by the ratio of the widths, σ_T/0.15 at most.
    stretch = max(1.0, float(sde.sigma(jnp.asarray(sde.T))) / 0.15)
    np.testing.assert_allclose(result.x_T[:, 0], exact, rtol=0, atol=30 * TOLERANCE * stretch)


def test_probes_average_to_the_exact_density():
    """In the plane one probe is an unbiased estimate: its mean over 512 is exact within 5 standard errors."""
    x = jnp.broadcast_to(jnp.asarray([[0.2, -0.3]]), (512, 2))
    result, corrected, exact = _evaluate("vp", "plane")(x, _keys(512))
    corrected = np.asarray(corrected, np.float64)
    assert not np.any(result.failed)
    assert corrected.std() > 1e-3  # a real estimate: the off-diagonal of the Jacobian is not zero
    assert abs(corrected.mean() - float(exact[0])) < 5 * corrected.std() / np.sqrt(512) + 1e-3


def test_a_samples_likelihood_is_its_own():
    evaluate, x, keys = _evaluate("vp", "gaussian"), _points(TARGETS["gaussian"], 8), _keys(8)
    together, alone = evaluate(x, keys)[0], evaluate(x[2:3], keys[2:3])[0]
    # Rounding moves the adaptive steps a little: within their local error.
    np.testing.assert_allclose(alone.log_prob[0], together.log_prob[2], rtol=0, atol=30 * TOLERANCE)


@process
def test_a_denoiser_that_knows_nothing_changes_no_volume_but_the_drifts(name):
    """With score 0 the flow is dx = f x dt: log p(x) = log prior(α_T/α_tmin x) + D log(α_T/α_tmin)."""
    sde = PROCESSES[name]()
    denoiser = Denoiser(sde=sde, function=lambda x, t, condition: 0 * x, prediction="score")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    result = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, rtol=TOLERANCE, atol=TOLERANCE))(x, _keys(4))
    with jax.enable_x64(True):
        alpha, alpha_T = (float(sde.alpha(jnp.asarray(t, jnp.float64))) for t in (sde.t_min, sde.T))
        sigma_T = float(sde.sigma(jnp.asarray(sde.T, jnp.float64)))
    scale = alpha_T / alpha
    latent = scale * np.asarray(x, np.float64)
    prior = -0.5 * (latent**2 / sigma_T**2 + np.log(2 * np.pi * sigma_T**2)).sum(axis=1)
    np.testing.assert_allclose(result.log_prob, prior + 3 * np.log(scale), rtol=0, atol=1e-3)
    np.testing.assert_allclose(result.x_T, latent, rtol=0, atol=30 * TOLERANCE)


def test_evaluations_are_those_really_made():
    """Counted on the host, for a batch of one."""
    sde, counter = PROCESSES["vp"](), []
    exact = _well_conditioned(TARGETS["gaussian"], sde)

    def function(x, t, condition):
        jax.debug.callback(lambda _: counter.append(1), t)
        return exact.function(x, t, condition)

    denoiser = Denoiser(sde=sde, function=function, prediction="epsilon")
    x = _points(TARGETS["gaussian"], 1)
    result = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, rtol=1e-3, atol=1e-3))(x, _keys(1))
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert int(result.evaluations[0]) == len(counter)


# --- bits/dim ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dimensions", [1, 64, 3072])
def test_a_uniform_density_costs_log2_of_the_levels(levels, dimensions):
    """Density 2^−D on [−1, 1]^D: log₂ K bits a value, whatever the data."""
    log_prob = jnp.full(3, -dimensions * np.log(2.0))
    # log p is of size 2000 at D = 3072: relative float32 rounding.
    np.testing.assert_allclose(bits_per_dim(log_prob, dimensions, levels), np.log2(levels), rtol=1e-6)


def test_a_piecewise_constant_density_costs_the_discrete_log_probability():
    """p_X = P(k) K/2 on the interval of k: bits/dim is −log₂ P(k), and on average the entropy."""
    probability = np.array([0.5, 0.25, 0.125, 0.125])
    log_prob = jnp.asarray(np.log(probability * 4 / 2), jnp.float32)
    bits = np.asarray(bits_per_dim(log_prob, 1, 4))
    np.testing.assert_allclose(bits, [1, 2, 3, 3], rtol=1e-6)
    assert (probability * bits).sum() == pytest.approx(1.75, rel=1e-6)


def test_bits_per_dim_of_independent_values_is_their_mean():
    probability = np.array([0.5, 0.125])
    log_prob = jnp.asarray([np.log(probability * 8 / 2).sum()], jnp.float32)
    assert float(bits_per_dim(log_prob, 2, 8)[0]) == pytest.approx((1 + 3) / 2, rel=1e-6)
