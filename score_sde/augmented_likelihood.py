r"""A lower bound on the log-likelihood of data under an augmented process, critically damped Langevin diffusion.

The probability-flow ODE has a density of z = (x, v), of which that of x is the integral. For any q(v | x)

    log p(x) ≥ E_q[log p(x, v) − log q(v | x)],                      the gap being KL(q ‖ p(v | x))
    log p(z_{t_min}) = log p_T(z_T) + ∫_{t_min}^{T} div dz/dt dt

with the data taken as x_{t_min}. There v = b x_0 + noise, and x_0 is x/a but for a noise of 0.002, so

    q(v | x) = N(b x/a, Σ_vv)               a = Φ_xx, b = Φ_vx, Σ_vv all at t_min

is nearly p(v | x) for data that are smooth at that scale. (The paper has t_min = 0 in it, where q = N(0, γ M I); at
1e-3 that costs 0.1 bits a dimension.) dx/dt does not depend on x, hence

    div dz/dt = tr ∂(dv/dt)/∂v = E eᵀ ∂(dv/dt)/∂v e,         e = ±1 (Rademacher) in the velocities alone

one probe a sample, fixed along the path, and one forward-mode pass.

Source: Dockhorn, Vahdat & Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", ICLR
2022, appendix B (the bound); Hutchinson 1990.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.sde import expand, integrate
from score_sde.typing import Condition, Data, Keys, PerSample


class LogLikelihoodBound(NamedTuple):
    """log_prob: one draw of a lower bound in expectation, in nats. evaluations of the network. Each `(batch,)`.

    failed: where the integration did.
    """

    log_prob: PerSample
    evaluations: Int[Array, "batch"]
    failed: Bool[Array, "batch"]


def log_likelihood_bound(
    denoiser: AugmentedDenoiser, x: Data, keys: Keys, condition: Condition = None, *, rtol: float, atol: float
) -> LogLikelihoodBound:
    """The bound on log p(x) of each sample, for one draw of v from q and one probe. See the module."""
    sde, shape = denoiser.sde, x.shape[1:]
    noise, probes = rng.normal(rng.child(keys, 0), shape, x.dtype), rng.rademacher(rng.child(keys, 1), shape)
    start = jnp.full(x.shape[0], sde.t_min, x.dtype)
    matrix = sde.transition_matrix(jnp.zeros_like(start), start)
    std = jnp.sqrt(sde.covariance(start)[:, 1, 1])
    v = expand(matrix[:, 1, 0] / matrix[:, 0, 0], x) * x + expand(std, x) * noise
    log_q = -0.5 * jnp.sum(noise**2, axis=tuple(range(1, x.ndim)))
    log_q = log_q - x[0].size * (0.5 * math.log(2 * math.pi) + jnp.log(std))

    def vector_field(t, state, arguments):
        probe, own = arguments
        x, v = sde.data_of(state[0]), sde.velocity_of(state[0])

        def rates(v):
            z, time = jnp.concatenate([x, v], axis=-1)[None], jnp.asarray(t, v.dtype)[None]
            return denoiser.velocity(z, time, jax.tree.map(lambda leaf: leaf[None], own))[0]

        rate, product = jax.jvp(rates, (v,), (probe,))
        return rate, jnp.sum(probe * sde.velocity_of(product))

    state = jnp.concatenate([x, v], axis=-1), jnp.zeros_like(start)
    arguments = (probes.astype(x.dtype), condition)
    solution = integrate(vector_field, state, arguments, sde.t_min, sde.T, rtol=rtol, atol=atol)
    z_T, divergence = solution.y
    log_prob = sde.prior_log_prob(z_T) + divergence - log_q
    return LogLikelihoodBound(log_prob, solution.evaluations, solution.failed)
