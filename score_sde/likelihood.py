r"""Exact likelihood by the probability-flow ODE, and bits/dim of discrete data.

Along dx/dt = v(x, t) the log-density changes by −div v (instantaneous change of variables), so

    log p(x_{t_min}) = log p_T(x_T) + ∫_{t_min}^{T} div v(x_t, t) dt

The data are taken as x_{t_min}. The divergence is Hutchinson's estimate eᵀ (∂v/∂x) e with one Rademacher
probe e per sample, fixed along the path, so that the integrand is smooth and the estimate unbiased; value
and product come from one forward-mode pass.

Data with K levels k = 0 … K−1, dequantised to y = (k + u)/K, u ~ U[0, 1), and scaled to x = 2y − 1, have

    −log₂ P(k)/D ≤ log₂ K + E_u[ −log₂ p_Y(y) ]/D = log₂(K/2) + E_u[ −log₂ p_X(x) ]/D

so bits/dim of the dequantised data is an upper bound on that of the discrete data (Theis et al. 2016).

Source: Song et al. 2021, sec. 4.3 and appendix D.2; Hutchinson 1990; Grathwohl et al. 2019.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.sde import integrate, reverse
from score_sde.typing import Data, Keys, PerSample


class LogLikelihood(NamedTuple):
    """log_prob in nats, evaluations of the network, failed where the integration did; each `(batch,)`.

    x_T `(batch, *shape)`: the latent that the data were encoded to.
    """

    log_prob: PerSample
    evaluations: Int[Array, "batch"]
    failed: Bool[Array, "batch"]
    x_T: Data


def log_likelihood(denoiser: Denoiser, x: Data, keys: Keys, *, rtol: float, atol: float) -> LogLikelihood:
    """log p(x) of each sample under the probability-flow ODE of `denoiser`; keys draw the probes."""
    sde = denoiser.sde

    def vector_field(t, state, probe):
        def velocity(sample):
            batch, time = sample[None], jnp.asarray(t, sample.dtype)[None]
            return reverse(sde, batch, time, denoiser.score(batch, time), eta=0.0)[0][0]

        value, product = jax.jvp(velocity, (state[0],), (probe,))
        return value, jnp.sum(probe * product)

    probes = rng.rademacher(keys, x.shape[1:])
    start = (x, jnp.zeros(x.shape[0], x.dtype))
    solution = integrate(vector_field, start, probes, sde.t_min, sde.T, rtol=rtol, atol=atol)
    x_T, divergence = solution.y
    log_prob = sde.prior_log_prob(x_T) + divergence
    return LogLikelihood(log_prob, solution.evaluations, solution.failed, x_T)


def bits_per_dim(log_prob: PerSample, dimensions: int, levels: int) -> PerSample:
    """Bits/dim of data with `levels` levels scaled to [−1, 1], from log p_X of the dequantised data in nats."""
    return -log_prob / (dimensions * math.log(2)) + math.log2(levels / 2)
