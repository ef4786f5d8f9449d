r"""EDM: noise of standard deviation t added to the data.

    α_t = 1,   σ_t = t,   f = 0,   g² = 2 t,   t ∈ [σ_min, σ_max]

Time is the noise level itself, and the probability-flow ODE is dx/dt = (x − D(x, t))/t.
Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(SDE):
    """Variance exploding with σ = t. See the module."""

    curve: ClassVar[str] = "ve"

    t_min: float = 0.002
    T: float = 80.0

    def check(self) -> None:
        if not self.t_min > 0:
            raise UserError(f"t_min, the smallest noise level, must be positive, not {self.t_min}")

    def alpha(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return t

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return jnp.exp(-0.5 * log_snr)
