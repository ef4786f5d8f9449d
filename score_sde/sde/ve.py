r"""Variance-exploding process with a geometric noise schedule (the continuous form of NCSN/SMLD).

    α_t = 1,   σ_t = σ_min (σ_max/σ_min)^t,   f = 0,   g² = 2 σ_t² log(σ_max/σ_min)

Source: Song et al. 2021, appendix C (eq. 30–31).
"""

import dataclasses
import math

import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class VE(SDE):
    """Variance exploding, geometric σ. See the module."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    T: float = 1.0

    def check(self) -> None:
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
