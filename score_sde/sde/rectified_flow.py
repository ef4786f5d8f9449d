r"""Rectified flow, or the linear interpolant: a straight line from data to noise.

    α_t = 1 − t,   σ_t = t,   f = −1/(1 − t),   g² = 2 t/(1 − t),   velocity = ε − x_0

f and g are infinite at t = 1, where no signal is left. The process ends at T = 0.999 (Ma et al. 2024, "SiT", who
sample on [0.001, 0.999]), so that every solver runs on it; T = 1 is allowed, for solvers that use neither f nor g.

Source: Liu, Gong & Liu, "Flow Straight and Fast", 2023; Lipman et al., "Flow Matching for Generative Modeling", 2023.
"""

import dataclasses
from typing import ClassVar

import jax

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(SDE):
    """α = 1 − t, σ = t. See the module."""

    curve: ClassVar[str] = "linear"

    t_min: float = 1e-3
    T: float = 0.999

    def check(self) -> None:
        if not (self.t_min > 0 and self.T <= 1):
            raise UserError(f"t_min must be positive and T at most 1, not {self.t_min}, {self.T}")

    def alpha(self, t: Times) -> Times:
        return 1 - t

    def sigma(self, t: Times) -> Times:
        return t

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return jax.nn.sigmoid(-0.5 * log_snr)
