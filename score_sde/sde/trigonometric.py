r"""Trigonometric interpolant, or generalised variance preserving (GVP): a quarter of the unit circle at constant speed.

    α_t = cos(πt/2),   σ_t = sin(πt/2),   f = −(π/2) tan(πt/2),   g² = π tan(πt/2)

f and g are infinite at t = 1. The process ends at T = 0.999 like `rectified_flow`; T = 1 is allowed, for solvers that
use neither f nor g. Each function is computed from the nearer end of the quarter, which keeps its derivative's digits.

Source: Albergo & Vanden-Eijnden, "Building Normalizing Flows with Stochastic Interpolants", 2023; Ma et al., "SiT",
2024
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trigonometric(SDE):
    """α = cos(πt/2), σ = sin(πt/2). See the module."""

    curve: ClassVar[str] = "vp"

    t_min: float = 1e-3
    T: float = 0.999

    def check(self) -> None:
        if not (self.t_min > 0 and self.T <= 1):
            raise UserError(f"t_min must be positive and T at most 1, not {self.t_min}, {self.T}")

    def alpha(self, t: Times) -> Times:
        return jnp.where(t < 0.5, jnp.cos(0.5 * math.pi * t), jnp.sin(0.5 * math.pi * (1 - t)))

    def sigma(self, t: Times) -> Times:
        return jnp.where(t < 0.5, jnp.sin(0.5 * math.pi * t), jnp.cos(0.5 * math.pi * (1 - t)))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return 2 / math.pi * jnp.arctan(jnp.exp(-0.5 * log_snr))
