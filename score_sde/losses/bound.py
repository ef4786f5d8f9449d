r"""The continuous-time evidence bound, and the training of a learned schedule.

    −log p(x) ≤ prior + diffusion + reconstruction                                                    (nats)

    prior           KL(q(x_T | x) ‖ N(0, σ_T² I)) = α_T² |x|²/(2 σ_T²)
    diffusion       ½ ∫_{t_min}^{T} (−d log_snr/dt) E|ε̂(x_t, t) − ε|² dt
    reconstruction  E_q[−log p(x | x_{t_min})] = D/2 (log(2π σ̄²) + 1),   p(x|x_{t_min}) = N(x_{t_min}/α, σ̄² I) at t_min

The data are x itself, not x_{t_min}: nothing is left out at the small end. The bound is tight where the denoiser is
exact, but for the decoder, whose KL to the exact posterior of x given x_{t_min} is O(σ̄²), and the prior. Estimated
with one time a sample, the integral over t is (T − t_min) times the integrand, times the factor of the time's
distribution. As an objective it is divided by D.

The diffusion term depends on the schedule through its ends alone. With L_i the estimate of a sample at a uniform time,

    E L² ∝ ∫ E|ε̂ − ε|⁴ s dlog_snr,   s = −d log_snr/dt as a function of log_snr

where the error at a given log_snr does not depend on the schedule. So the gradient of E L² in the shape of the schedule
is that of E_t[(L²/s) s], the first factor fixed and s followed at fixed log_snr: at t − (log_snr(t) − fixed)/fixed
slope. It needs no second pass through the network. `schedule_loss` takes it of the logarithm, so that its size
does not depend on the loss's.

Source: Kingma, Salimans, Poole & Ho, "Variational Diffusion Models", 2021, eq. 11, 15 and appendix I.2; Huang, Lim &
Courville 2021. The gradient of the variance at fixed log_snr is ours.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.losses.base import Loss, Objective
from score_sde.losses.denoising import squared_error
from score_sde.losses.weightings import Weighting
from score_sde.sde import SDE, Process
from score_sde.typing import Condition, Data, Keys, PerSample, Time


class BoundTerms(NamedTuple):
    """In nats, `(batch,)` each: their sum bounds −log p(x) from above, in expectation over the noise and time."""

    prior: PerSample
    diffusion: PerSample
    reconstruction: PerSample


def check_bound(sde: Process) -> None:
    """Raises UserError where the process has no such bound."""
    if sde.ends_in_noise:
        raise UserError("the bound needs a finite log_snr at T, not a process that ends in pure noise; use a smaller T")


def bound_terms(
    denoiser: Denoiser, x: Data, condition: Condition, keys: Keys, t: Time, factor: PerSample
) -> BoundTerms:
    """One estimate of the bound's terms for each sample, at its time t. See the module."""
    sde, dimensions = denoiser.sde, x[0].size
    start, end = (jnp.asarray(time, x.dtype) for time in (sde.t_min, sde.T))
    prior = 0.5 * jnp.exp(sde.log_snr(end)) * jnp.sum(x**2, axis=tuple(range(1, x.ndim)))
    rate = (sde.diffusion_coefficient(t) / sde.sigma(t)) ** 2
    error = dimensions * squared_error(denoiser, "epsilon", x, condition, keys, t)
    diffusion = 0.5 * (sde.T - sde.t_min) * factor * rate * error
    reconstruction = 0.5 * dimensions * (math.log(2 * math.pi) + 1 - sde.log_snr(start))
    return BoundTerms(prior, diffusion, jnp.broadcast_to(reconstruction, diffusion.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound(Objective):
    """The bound in nats a dimension. It weights by itself: `weighting` must be "vlb", which its diffusion term is."""

    def check(self, sde: Process) -> None:
        super().check(sde)
        check_bound(sde)

    def __call__(
        self,
        denoiser: Denoiser,
        weighting: Weighting,
        x_0: Data,
        condition: Condition,
        keys: Keys,
        t: Time,
        factor: PerSample,
    ) -> Loss:
        terms = bound_terms(denoiser, x_0, condition, keys, t, factor)
        total = terms.prior + terms.diffusion + terms.reconstruction
        return Loss(total / x_0[0].size, terms.diffusion / (factor * x_0[0].size))


def schedule_loss(sde: SDE, t: Time, at_time: PerSample) -> Float[Array, ""]:
    """1, with the gradient of log E L² in the learned parameters of `sde`; see the text above.

    t: uniform times. at_time: the loss at each, L; neither is followed.
    """
    t, loss = jax.lax.stop_gradient(t), jax.lax.stop_gradient(at_time)
    slope = lambda time: jax.jvp(sde.log_snr, (time,), (jnp.ones_like(time),))
    value, rate = slope(t)
    there = t - (value - jax.lax.stop_gradient(value)) / jax.lax.stop_gradient(rate)  # where log_snr stays what it is
    _, rate_there = slope(there)
    second_moment = jnp.mean(loss**2 / jax.lax.stop_gradient(rate) * rate_there)
    return second_moment / jax.lax.stop_gradient(second_moment)
