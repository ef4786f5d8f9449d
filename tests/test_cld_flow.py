"""The probability flow of critically damped Langevin diffusion and its likelihoods, on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.stats

from score_sde.augmented_likelihood import log_likelihood_bound
from score_sde.samplers import Sampler
from score_sde.samplers.probability_flow import ProbabilityFlowODE
from score_sde.sde import integrate
from score_sde.sde.cld import CLD
from tests import cld


def _flow(denoiser, z, t, s, tolerance):
    def vector_field(time, sample, _):
        return denoiser.velocity(sample[None], jnp.asarray(time, sample.dtype)[None])[0]

    return integrate(vector_field, z, None, t, s, rtol=tolerance, atol=tolerance)


def test_the_flow_takes_the_prior_to_the_data_and_back():
    """The flow of a Gaussian is affine, so the images of 0, e_x and e_v give the law that it makes of the prior."""
    sde = CLD()
    with jax.enable_x64(True):
        denoiser = cld.denoiser(sde)
        z_T = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-0.7, 0.4]])
        solve = jax.jit(lambda z, t, s: _flow(denoiser, z, t, s, 1e-8))
        there = solve(z_T, sde.T, sde.t_min)
        back = solve(there.y, sde.t_min, sde.T)
        z = np.asarray(there.y)
    assert not np.any(there.failed)
    # The errors of a tolerance of 1e-8, and what the flow amplifies: the velocity's spread grows by √(1/γ) = 5.
    np.testing.assert_allclose(back.y, z_T, rtol=0, atol=1e-6)
    linear = (z[1:3] - z[0]).T
    np.testing.assert_allclose(z[0] + linear @ np.asarray(z_T)[3], z[3], rtol=0, atol=1e-6)
    mean, covariance = cld.exact(sde, sde.t_min)
    # The prior is not the law at T, whose mean is MEAN e^{−8} (9, −4) = (0.0015, −0.0007): 0.002 standard deviations.
    scale = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z[0] - mean) < 3e-3 * scale)
    np.testing.assert_allclose(
        linear @ np.diag([1, sde.mass]) @ linear.T / np.outer(scale, scale),
        covariance / np.outer(scale, scale),
        rtol=0,
        atol=1e-4,
    )


def test_the_joint_likelihood_is_exact():
    """log p(x, v) at t_min by the change of variables along the flow, at tolerance 1e-5."""
    sde = CLD()
    mean, covariance = cld.exact(sde, sde.t_min)
    z = np.random.default_rng(1).multivariate_normal(mean, covariance, size=16)
    end_mean, end_covariance = cld.exact(sde, sde.T)
    with jax.enable_x64(True):
        denoiser = cld.denoiser(sde)

        def vector_field(t, state, _):
            velocity = lambda sample: denoiser.velocity(sample[None], jnp.asarray(t)[None])[0]
            return velocity(state[0]), jnp.trace(jax.jacfwd(velocity)(state[0]))

        solve = jax.jit(lambda s: integrate(vector_field, s, None, sde.t_min, sde.T, rtol=1e-5, atol=1e-5))
        solution = solve((jnp.asarray(z), jnp.zeros(16)))
        latent, divergence = map(np.asarray, solution.y)
        prior = np.asarray(sde.prior_log_prob(solution.y[0]))
    exact = scipy.stats.multivariate_normal(mean, covariance).logpdf(z)
    terminal = scipy.stats.multivariate_normal(end_mean, end_covariance).logpdf(latent)
    assert np.max(np.abs(terminal + divergence - exact)) < 1e-3
    # With the prior in place of the law at T, its mismatch comes on top: mean 0.0015 at 2.5 standard deviations.
    assert np.max(np.abs(prior + divergence - exact)) < 1e-2


def test_the_bound_on_the_likelihood():
    """Of N(MEAN, STD²) in closed form: E_q[log p(x, v)] + H(q), q = N(b x/a, Σ_vv); its gap is a KL divergence.

    In one dimension the probe is exact, so that the draw of v is the only chance.
    """
    sde, count = CLD(), 400
    mean, covariance = cld.exact(sde, sde.t_min)
    precision = np.linalg.inv(covariance)
    flow = scipy.linalg.expm(cld.drift(sde) * sde.t_min)
    variance = cld.noise(sde, sde.t_min)[1, 1] + sde.gamma * sde.mass * flow[1, 1] ** 2
    x = np.array([cld.MEAN, cld.MEAN + cld.STD, cld.MEAN - 2 * cld.STD])
    away = np.stack([x, flow[1, 0] / flow[0, 0] * x], axis=1) - mean
    joint = scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(away) - 0.5 * precision[1, 1] * variance
    bound = joint + 0.5 * np.log(2 * np.pi * np.e * variance)
    gap = scipy.stats.norm(mean[0], np.sqrt(covariance[0, 0])).logpdf(x) - bound
    assert np.all((gap > 0) & (gap < 1e-2))
    with jax.enable_x64(True):
        solve = jax.jit(lambda x, keys: log_likelihood_bound(cld.denoiser(sde), x, keys, rtol=1e-5, atol=1e-5))
        result = solve(jnp.asarray(np.repeat(x, count)[:, None]), cld.keys(3 * count, "bound"))
    assert not np.any(result.failed)
    values = np.asarray(result.log_prob).reshape(3, count)
    # 5 standard errors, and what the prior differs from the law at T (see the joint likelihood).
    assert np.all(np.abs(values.mean(axis=1) - bound) < 5 * values.std(axis=1) / np.sqrt(count) + 5e-3)


def test_the_flow_samples_data():
    """`ode`, the solver of the affine processes, on this one: samples are data, N(MEAN, STD²)."""
    sampler, count = Sampler(solver=ProbabilityFlowODE(rtol=1e-4, atol=1e-4), steps=1), 2000
    plan = sampler.plan(CLD())
    samples = jax.jit(lambda keys: sampler(cld.denoiser(CLD()), plan, keys, (1,)))(cld.keys(count, "flow"))
    assert samples.x.shape == (count, 1)
    assert not np.any(samples.failed)
    x = np.asarray(samples.x, np.float64)
    # 5 standard errors.
    assert abs(x.mean() - cld.MEAN) < 5 * cld.STD / np.sqrt(count)
    assert abs(x.std() / cld.STD - 1) < 5 / np.sqrt(2 * count)
