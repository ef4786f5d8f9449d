r"""What the processes with a geometric noise schedule share.

α_t = 1,   σ_t = σ_min (σ_max/σ_min)^t,   f = 0,   g² = 2 σ_t² log(σ_max/σ_min),   t ∈ [0, 1]
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometric(SDE):
    """Abstract: α and σ of a geometric schedule."""

    curve: ClassVar[str] = "ve"

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    T: float = 1.0

    def check_sigmas(self) -> None:
        """Raises UserError where the noise levels make no sense."""
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"not {self.sigma_min}, {self.sigma_max}"
            )

    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Times) -> Times:
        return jnp.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return self.sigma_min * jnp.exp(t * self._log_ratio())

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio()
