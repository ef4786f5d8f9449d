r"""The likelihood, the bound and the codes against exact densities.

The target of the first battery over all processes is a mixture of two Gaussians in the plane with means within 0.15 of
0 and standard deviations s from 0.3 to 0.4. Two things keep log p(x) from log p_0(x), and neither is an error of the
code:

- the noise left at t_min, σ̄² ≤ 1e-4 (ve, smld, ddpm). A Gaussian's variance becomes s² + σ̄², which changes log p by
  ½ σ̄²/s² (z² − 1) a value, z its standardised distance: at most 5.6e-4 |z² − 1|;
- the prior in place of p_T. The mixture's mean is 0, so what is left is the variance, α_T² V beside σ_T², V ≤ 0.16: the
  change is ½ V α_T²/σ_T² (z² − 1), at most 5.4e-4 |z² − 1| for vdm, whose log_snr ends at −5, and 1/15 of it elsewhere.

Points with |z|² between 0.3 and 3.4, summed over the plane |Σ (z² − 1)| ≤ 1.7, keep either below 1e-3 with the numbers
of the worse axis, and below 8e-4 with those of both axes. No process has both.

The second battery's is a mixture of two that are 7 to 12 standard deviations apart on either axis, where neither is
small. There the code is held to the density that it is of: that of x_{t_min}/α, with the prior in place of p_T.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracles, rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.likelihood import TRACES, decode, encode, log_likelihood, slerp
from score_sde.losses import bound_terms
from score_sde.losses.times import Importance, Times
from score_sde.sde import PROCESSES, RectifiedFlow, expand

NAMES = sorted(PROCESSES)
process = pytest.mark.parametrize("name", NAMES)
TOLERANCE = 1e-5
DRAWS = 4096  # of the bound, for each of the points

PLANE = oracles.mixture([0.4, 0.6], [(-0.15, 0.12), (0.1, -0.08)], [(0.4, 0.3), (0.35, 0.35)], (2,))
SEPARATED = oracles.mixture([0.3, 0.7], [(-0.6, -0.4), (0.5, 0.6)], [(0.1, 0.15), (0.12, 0.08)], (2,))
SKEWED = oracles.mixture([0.4, 0.6], [(-0.5, 0.2), (0.5, -0.1)], [(0.3, 0.2), (0.2, 0.4)], (2,))
TIMES = Times(Importance(), low_discrepancy=True)


def _well_conditioned(oracle, sde):
    """The exact denoiser as a network of ε: as one of x_0 its score would lose 1/σ² float32 digits at t_min."""

    def epsilon(x_t, t, condition):
        score = jax.grad(lambda x: jnp.sum(oracle.log_prob(sde, x, t)))(x_t)
        return -expand(sde.sigma(t), x_t) * score

    return Denoiser(sde=sde, function=epsilon, prediction="epsilon")


def _keys(count, name="probe"):
    return rng.for_samples(rng.stream(0, name), jnp.arange(count))


def _points():
    """Eight, around the mixture's centre; see the module."""
    turn = 2 * np.pi * np.arange(8) / 8 + 0.3
    z = np.sqrt(np.linspace(0.3, 3.4, 8))[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return jnp.asarray(PLANE.mean() + np.sqrt(PLANE.variance()) * z, jnp.float32)


@functools.cache
def _evaluated(name):
    """Everything of one process, from one compiled function."""
    sde = PROCESSES[name]()
    denoiser, x = _well_conditioned(PLANE, sde), _points()
    tolerance = {"rtol": TOLERANCE, "atol": TOLERANCE}

    def evaluate(x, keys, many):
        exact = log_likelihood(denoiser, x, keys, trace="exact", **tolerance)
        decoded = decode(denoiser, exact.x_T, **tolerance)
        repeated = jnp.repeat(x, DRAWS, axis=0)
        t, factor = TIMES.draw(sde, many, ())
        terms = bound_terms(denoiser, repeated, None, many, t[_shuffled()], factor[_shuffled()])
        return exact, decoded, jax.tree.map(lambda a: a.reshape(-1, DRAWS), terms)

    return sde, x, jax.device_get(jax.jit(evaluate)(x, _keys(8), _keys(8 * DRAWS, "bound")))


def _shuffled():
    """Gives every point times of the whole range: low-discrepancy times rise along the batch."""
    return np.arange(8 * DRAWS).reshape(DRAWS, 8).T.reshape(-1)


@process
def test_log_likelihood_is_the_density_of_the_data(name):
    _, x, (result, _, _) = _evaluated(name)
    assert not np.any(result.failed)
    np.testing.assert_allclose(result.log_prob, PLANE.data_log_prob(x), rtol=0, atol=1e-3)


@process
def test_log_likelihood_is_the_density_of_the_data_as_noised(name):
    """Points of both modes, and some on the way from one to the other.

    The reference has no term left out: log p_{t_min}(α x) + D log α, of the mixture convolved with N(0, σ̄²), and the
    prior's log-density less that of p_T at the latent, from 1e-3 nats (rectified flow) to 0.07 (vdm).
    """
    sde = PROCESSES[name]()
    start = SEPARATED.marginal(sde, sde.t_min)
    generator = np.random.default_rng(0)
    component = generator.choice(2, 64, p=SEPARATED.weights)
    drawn = start.means[component] + start.stds[component] * generator.normal(size=(64, 2))
    with jax.enable_x64(True):
        alpha, sigma_T = (
            float(f(jnp.asarray(t, jnp.float64))) for f, t in ((sde.alpha, sde.t_min), (sde.sigma, sde.T))
        )
    x = np.float32(np.concatenate([drawn / alpha, np.linspace(*SEPARATED.means, 8)]))
    denoiser = _well_conditioned(SEPARATED, sde)
    tolerance = {"rtol": TOLERANCE, "atol": TOLERANCE}
    evaluate = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, trace="exact", **tolerance))
    result = jax.device_get(evaluate(x, _keys(len(x))))
    assert not np.any(result.failed)
    with jax.enable_x64(True):
        density = lambda x, t: SEPARATED.log_prob(sde, x, jnp.full(len(x), t, jnp.float64))
        noised = density(alpha * jnp.asarray(x, jnp.float64), sde.t_min) + 2 * np.log(alpha)
        x_T = jnp.asarray(result.x_T, jnp.float64)
        prior = oracles.gaussian(0.0, sigma_T, (2,)).data_log_prob(x_T)
        expected = noised + prior - density(x_T, sde.T)
    np.testing.assert_allclose(result.log_prob, expected, rtol=0, atol=1e-3)


@process
def test_decoding_undoes_encoding(name):
    _, x, (_, decoded, _) = _evaluated(name)
    assert not np.any(decoded.failed)
    np.testing.assert_allclose(decoded.x, x, rtol=0, atol=1e-3)


@process
def test_the_bound_is_tight_at_the_exact_denoiser(name):
    """Its mean over draws is −log p within 5 of its standard errors, and 1e-3 for what the module says and the decoder,
    whose KL is as small."""
    _, x, (_, _, terms) = _evaluated(name)
    bound = sum(np.asarray(part, np.float64) for part in terms)
    error = bound.std(axis=1, ddof=1) / np.sqrt(DRAWS)
    excess = bound.mean(axis=1) + np.asarray(PLANE.data_log_prob(x), np.float64)
    assert np.all(np.abs(excess) < 5 * error + 1e-3)
    together = np.sqrt(np.sum(error**2)) / 8
    assert abs(excess.mean()) < 5 * together + 1e-3


@process
def test_the_bounds_closed_terms(name):
    """Prior: the KL between N(α x, σ²) and N(0, σ²) at T. Reconstruction: the entropy of N(0, σ̄²) at t_min."""
    sde, x, (_, _, terms) = _evaluated(name)
    with jax.enable_x64(True):
        alpha, sigma = (
            np.asarray([float(f(jnp.asarray(t, jnp.float64))) for t in (sde.t_min, sde.T)])
            for f in (sde.alpha, sde.sigma)
        )
    prior = np.sum((alpha[1] * np.asarray(x, np.float64)) ** 2, axis=1) / (2 * sigma[1] ** 2)
    np.testing.assert_allclose(terms.prior[:, 0], prior, rtol=1e-3)  # α_T² of cosine loses digits near T
    reconstruction = 2 * (0.5 * np.log(2 * np.pi * (sigma[0] / alpha[0]) ** 2) + 0.5)
    np.testing.assert_allclose(terms.reconstruction, reconstruction, rtol=1e-4)


def test_the_bound_of_a_wrong_denoiser_lies_above():
    """ε̂ scaled by 1.5, whose bound costs E|½ ε̂|² more: far above the entropy of the data, beyond the Monte-Carlo error.

    It bounds the likelihood of the SDE with that score, not of the ODE, which may lie on either side.
    """
    sde = PROCESSES["vp"]()
    exact = _well_conditioned(PLANE, sde)
    function = lambda x_t, t, condition: 1.5 * exact.function(x_t, t, condition)
    wrong = Denoiser(sde=sde, function=function, prediction="epsilon")
    generator = np.random.default_rng(0)
    component = generator.choice(2, DRAWS, p=PLANE.weights)
    x = PLANE.means[component] + PLANE.stds[component] * generator.normal(size=(DRAWS, 2))

    def evaluate(x, keys):
        t, factor = TIMES.draw(sde, keys, ())
        return sum(bound_terms(wrong, x, None, keys, t, factor)) + PLANE.data_log_prob(x)

    excess = np.asarray(jax.jit(evaluate)(jnp.asarray(x, jnp.float32), _keys(DRAWS, "bound")), np.float64)
    assert excess.mean() > 5 * excess.std() / np.sqrt(DRAWS)


# --- divergence ----------------------------------------------------------------------------------------------------


@functools.cache
def _traced(trace, probes):
    """log p under the exact p_T of 512 copies of one point, and the exact value."""
    sde = PROCESSES["vp"]()
    denoiser = _well_conditioned(SKEWED, sde)
    x = jnp.broadcast_to(jnp.asarray([[0.2, -0.3]]), (512, 2))

    def evaluate(x, keys):
        result = log_likelihood(denoiser, x, keys, rtol=1e-4, atol=1e-4, trace=trace, probes=probes)
        at = lambda t: jnp.full(x.shape[0], t, jnp.float32)
        corrected = result.log_prob - sde.prior_log_prob(result.x_T) + SKEWED.log_prob(sde, result.x_T, at(sde.T))
        return corrected, result.failed

    corrected, failed = jax.device_get(jax.jit(evaluate)(x, _keys(512)))
    assert not failed.any()
    return corrected.astype(np.float64), float(SKEWED.data_log_prob(x)[0])


@pytest.mark.parametrize(("trace", "probes"), [("rademacher", 1), ("rademacher", 8), ("gaussian", 1)])
def test_probes_average_to_the_exact_density(trace, probes):
    """Unbiased: the mean over 512 is exact within 5 standard errors, and 2e-3 for the integration at 1e-4."""
    value, exact = _traced(trace, probes)
    assert value.std() > 1e-3  # a real estimate: the off-diagonal of the Jacobian is not zero
    assert abs(value.mean() - exact) < 5 * value.std() / np.sqrt(512) + 2e-3


def test_probes_divide_the_variance():
    """8 probes: an eighth. The ratio of variances of 512 draws each has a relative error of about √(4/512) = 9 %."""
    ratio = _traced("rademacher", 1)[0].var() / _traced("rademacher", 8)[0].var()
    assert 8 / 1.6 < ratio < 8 * 1.6


def test_the_exact_trace_has_no_variance():
    value, exact = _traced("exact", 1)
    assert value.std() < 1e-5
    assert abs(value.mean() - exact) < 2e-3
    assert _traced("gaussian", 1)[0].std() > _traced("rademacher", 1)[0].std()  # the diagonal's part


def test_traces_are_refused():
    sde = PROCESSES["vp"]()
    ask = lambda **options: log_likelihood(
        _well_conditioned(SKEWED, sde), jnp.zeros((1, 2)), _keys(1), rtol=1e-3, atol=1e-3, **options
    )
    with pytest.raises(UserError, match=r"unknown trace 'rademaker'.*did you mean 'rademacher'"):
        ask(trace="rademaker")
    with pytest.raises(UserError, match=r"probes must lie in \[1, 1000\], not 0"):
        ask(probes=0)
    with pytest.raises(UserError, match="draws no probes"):
        ask(trace="exact", probes=2)
    assert set(TRACES) == {"rademacher", "gaussian", "exact"}


# --- the flow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "edm", "subvp", "rectified_flow"])  # one of each curve
def test_a_denoiser_that_knows_nothing_changes_no_volume_but_the_drifts(name):
    """With score 0 the flow is dx = f x dt: log p(x) = log prior(α_T x) + D log α_T."""
    sde = PROCESSES[name]()
    denoiser = Denoiser(sde=sde, function=lambda x, t, condition: 0 * x, prediction="score")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    result = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, rtol=TOLERANCE, atol=TOLERANCE))(x, _keys(4))
    with jax.enable_x64(True):
        alpha_T, sigma_T = (float(f(jnp.asarray(sde.T, jnp.float64))) for f in (sde.alpha, sde.sigma))
    latent = alpha_T * np.asarray(x, np.float64)
    prior = -0.5 * (latent**2 / sigma_T**2 + np.log(2 * np.pi * sigma_T**2)).sum(axis=1)
    np.testing.assert_allclose(result.log_prob, prior + 3 * np.log(alpha_T), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(result.x_T, latent, rtol=0, atol=30 * TOLERANCE * np.hypot(alpha_T, sigma_T))


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_the_latent_is_where_the_exact_flow_leads(name):
    sde, oracle = PROCESSES[name](), oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.15, 0.25], (1,))
    x = jnp.linspace(-0.8, 0.9, 8)[:, None]
    flow = jax.jit(lambda x: encode(_well_conditioned(oracle, sde), x, rtol=TOLERANCE, atol=TOLERANCE))
    alpha = float(sde.alpha(jnp.asarray(sde.t_min)))
    exact = oracle.flow(sde, alpha * np.asarray(x, np.float64)[:, 0], sde.t_min, sde.T)
    # Local errors of 1e-5, some tens of steps; the flow stretches by the ratio of the widths, σ_T/0.15 at most.
    stretch = float(sde.sigma(jnp.asarray(sde.T))) / 0.15
    np.testing.assert_allclose(flow(x).x[:, 0], exact, rtol=0, atol=30 * TOLERANCE * stretch)


def test_a_process_that_ends_in_pure_noise():
    """α_T = 0, with a denoiser of the velocity: nothing is infinite, and the prior is exact."""
    sde, oracle = RectifiedFlow(T=1.0), oracles.gaussian(0.3, 0.5, (2,))

    def velocity(x_t, t, condition):
        """(α̇ α s² + σ̇ σ)(x − α m)/(α² s² + σ²) + α̇ m, the exact Gaussian one."""
        alpha, sigma = expand(sde.alpha(t), x_t), expand(sde.sigma(t), x_t)
        gain = (-alpha * 0.25 + sigma) / (alpha**2 * 0.25 + sigma**2)
        return gain * (x_t - 0.3 * alpha) - 0.3

    denoiser = Denoiser(sde=sde, function=velocity, prediction="velocity")
    x = jnp.asarray(np.random.default_rng(0).normal(0.3, 0.5, (8, 2)), jnp.float32)

    def evaluate(x, keys):
        result = log_likelihood(denoiser, x, keys, rtol=TOLERANCE, atol=TOLERANCE)
        return result, decode(denoiser, result.x_T, rtol=TOLERANCE, atol=TOLERANCE).x

    result, decoded = jax.jit(evaluate)(x, _keys(8))
    np.testing.assert_allclose(result.log_prob, oracle.data_log_prob(x), rtol=0, atol=1e-3)
    np.testing.assert_allclose(decoded, x, rtol=0, atol=1e-3)


def test_a_samples_likelihood_is_its_own():
    sde = PROCESSES["vp"]()
    denoiser, x, keys = _well_conditioned(PLANE, sde), _points(), _keys(8)
    evaluate = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, rtol=TOLERANCE, atol=TOLERANCE).log_prob)
    # Rounding moves the adaptive steps a little: within their local error.
    np.testing.assert_allclose(evaluate(x[2:3], keys[2:3])[0], evaluate(x, keys)[2], rtol=0, atol=30 * TOLERANCE)


def test_each_sample_has_its_own_condition():
    """The condition as the mean of a Gaussian: log p(x | c), and codes that go with it."""
    sde = PROCESSES["vp"]()
    base = _well_conditioned(oracles.gaussian(0.0, 0.5, (2,)), sde)

    def function(x_t, t, condition):
        return base.function(x_t - expand(sde.alpha(t), x_t) * condition["mean"], t, None)

    denoiser = Denoiser(sde=sde, function=function, prediction="epsilon")
    x, mean = jnp.zeros((3, 2)), {"mean": jnp.asarray([[0.0, 0.0], [0.5, 0.0], [0.5, -0.5]])}

    def evaluate(x, keys, mean):
        result = log_likelihood(denoiser, x, keys, rtol=1e-4, atol=1e-4, condition=mean)
        return result.log_prob, decode(denoiser, result.x_T, rtol=1e-4, atol=1e-4, condition=mean).x

    log_prob, decoded = jax.jit(evaluate)(x, _keys(3), mean)
    exact = -np.log(2 * np.pi * 0.25) - 0.5 * np.sum(np.asarray(mean["mean"]) ** 2, axis=1) / 0.25
    # 7e-3 α_T of vp, times the mean, against a prior of mean 0: α_T m z ≤ 7e-3.
    np.testing.assert_allclose(log_prob, exact, rtol=0, atol=1e-2)
    np.testing.assert_allclose(decoded, x, rtol=0, atol=1e-3)


def test_evaluations_are_those_really_made():
    """Counted on the host, for a batch of one."""
    sde, counter = PROCESSES["vp"](), []
    exact = _well_conditioned(PLANE, sde)

    def function(x, t, condition):
        jax.debug.callback(lambda _: counter.append(1), t)
        return exact.function(x, t, condition)

    denoiser = Denoiser(sde=sde, function=function, prediction="epsilon")
    result = jax.jit(lambda x, keys: log_likelihood(denoiser, x, keys, rtol=1e-3, atol=1e-3))(_points()[:1], _keys(1))
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert int(result.evaluations[0]) == len(counter)


# --- interpolation -------------------------------------------------------------------------------------------------


def test_slerp_walks_the_arc():
    """At share s the angle to the first is s ω, at equal length; ends are the two themselves."""
    one, other = jnp.asarray([[2.0, 0.0, 0.0]] * 5), jnp.asarray([[0.0, 2.0, 0.0]] * 5)
    share = jnp.linspace(0, 1, 5)
    turn = np.pi / 2 * np.asarray(share)
    expected = 2 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    np.testing.assert_allclose(slerp(one, other, share), expected, atol=1e-6)


def test_slerp_of_near_parallel_equal_and_zero_vectors():
    """There it is linear interpolation; nothing is divided by the angle."""
    one = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    other = jnp.asarray([[1.0, 1e-6], [1.0, 0.0], [0.0, 0.0], [6.0, 8.0]])
    share = jnp.full(4, 0.25)
    np.testing.assert_allclose(slerp(one, other, share), 0.75 * one + 0.25 * other, rtol=1e-6, atol=1e-9)
    assert np.isfinite(slerp(one, -one, share)).all()
