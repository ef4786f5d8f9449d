r"""Denoising score matching.

    L = E_{t, x_0, ε}  w(t) · mean_d (ε̂(x_t, t) − ε)²,   x_t = α_t x_0 + σ_t ε

with w a weighting and t drawn as configured. At the steps of `ddpm` and `smld` (times "steps", weighting "sigma2") it
is DDPM's simple loss and NCSN's loss, Σ_i σ_i² |score error|²/N.

Source: Vincent 2011; Ho et al. 2020, eq. 14; Song et al. 2021, eq. 7.
"""

import dataclasses

import jax.numpy as jnp

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.losses.base import Loss, Objective
from score_sde.losses.weightings import Weighting
from score_sde.typing import Condition, Data, Keys, PerSample, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """Denoising score matching. See the module."""

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
        loss = weighting(denoiser.sde, t) * squared_error(denoiser, x_0, condition, keys, t)
        return Loss(factor * loss, loss)


def squared_error(denoiser: Denoiser, x_0: Data, condition: Condition, keys: Keys, t: Time) -> PerSample:
    """mean_d (ε̂ − ε)² of each sample, for one draw of ε."""
    noise = rng.normal(keys, x_0.shape[1:])
    mean, std = denoiser.sde.marginal(x_0, t)
    error = denoiser.epsilon(mean + std * noise, t, condition) - noise
    return jnp.mean(error**2, axis=tuple(range(1, x_0.ndim)))
