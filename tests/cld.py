"""Critically damped Langevin diffusion on Gaussian data, of which everything is known.

A Gaussian stays one: z_t ~ N(Φ (μ, 0), Φ diag(s², γ M) Φᵀ + Q). Its score, posterior mean, density and probability flow
are closed forms, built here in float64 from `scipy.linalg.expm` and Gauss quadrature, not from the code under test.
"""

import functools

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.sde.cld import CLD

# Short and wide, so that few steps are in the asymptotic regime.
MILD = CLD(beta=2.0, mass=0.5, gamma=0.6, t_min=0.02)
MEAN, STD = 0.5, 0.4


def drift(sde):
    return np.array([[0, sde.beta / sde.mass], [-sde.beta, -2 * np.sqrt(sde.mass) * sde.beta / sde.mass]])


@functools.cache
def paths(sde, duration):
    """Gauss quadrature over r in [0, duration]: its weights, and Φ(r) G, `(nodes, 2)`."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    g = np.sqrt(4 * np.sqrt(sde.mass) * sde.beta)
    flows = [scipy.linalg.expm(drift(sde) * duration * (node + 1) / 2) for node in nodes]
    return duration * weights / 2, g * np.stack([flow[:, 1] for flow in flows])


def noise(sde, duration):
    """Q = ∫ Φ(r) G Gᵀ Φ(r)ᵀ dr."""
    weights, q = paths(sde, duration)
    return (q.T * weights) @ q


def determinants(sde, duration, v):
    """|Q| and |Q + v vᵀ|, as integrals of squares, in which no large numbers cancel.

    |Q| = ½ ∬ (q_x(r) q_v(r') − q_v(r) q_x(r'))² dr dr' and |Q + v vᵀ| = |Q| + ∫ (v_x q_v − v_v q_x)² dr, q(r) = Φ(r) G.
    """
    weights, q = paths(sde, duration)
    cross = np.outer(q[:, 0], q[:, 1])
    alone = weights @ (cross - cross.T) ** 2 @ weights / 2
    return alone, alone + weights @ (v[0] * q[:, 1] - v[1] * q[:, 0]) ** 2


def exact(sde, t):
    """Mean and covariance of z_t for data N(MEAN, STD²), in one dimension."""
    flow = scipy.linalg.expm(drift(sde) * t)
    start = np.diag([STD**2, sde.gamma * sde.mass])
    return flow @ [MEAN, 0], flow @ start @ flow.T + noise(sde, t)


def moments(sde, t):
    """The same, traceable, for t `(batch,)`; `test_gaussian_moments` holds it to `exact`."""
    flow = sde.transition_matrix(jnp.zeros_like(t), t)
    start = jnp.asarray([STD**2, sde.gamma * sde.mass], t.dtype)[None, None]
    return flow[..., 0] * MEAN, (flow * start) @ jnp.swapaxes(flow, 1, 2) + sde.covariance(t, "z_0")


def score(sde, z, t):
    """∇_z log p_t(z), `(batch, 2)`."""
    mean, covariance = moments(sde, t)
    return -jnp.linalg.solve(covariance, (z - mean)[..., None])[..., 0]


def posterior_mean(sde, z, t):
    """E[x_0 | z] of jointly Gaussian x_0 and z, `(batch, 1)`."""
    mean, covariance = moments(sde, t)
    cross = STD**2 * sde.transition_matrix(jnp.zeros_like(t), t)[..., 0]
    return MEAN + jnp.sum(cross * jnp.linalg.solve(covariance, (z - mean)[..., None])[..., 0], axis=1, keepdims=True)


def denoiser(sde):
    """The exact score of the velocity."""
    return AugmentedDenoiser(sde=sde, function=lambda z, t, _: score(sde, z, t)[:, 1:], prediction="score")


def keys(count, name="cld"):
    """One for each of `count` samples."""
    return rng.for_samples(rng.stream(0, name), jnp.arange(count))
