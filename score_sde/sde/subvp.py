r"""Sub-variance-preserving process: the VP process with a smaller diffusion.

    α_t = e^{−B/2},   σ_t = 1 − e^{−B},   f = −β/2,   g² = β (1 − e^{−2B}),   B as in `vp`
    α/σ = 1 / (2 sinh(B/2)),   so   B = 2 asinh(e^{−log_snr/2} / 2)

Source: Song et al. 2021, appendix B (eq. 27–29).
"""

import dataclasses

import jax.numpy as jnp

from score_sde.sde.base import SDE, Times
from score_sde.sde.vp import check_beta, integrated_beta, time_of_integrated_beta


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(SDE):
    """Sub-variance preserving, linear β. See the module."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    T: float = 1.0

    def check(self) -> None:
        check_beta(self.t_min, self.beta_min, self.beta_max)

    def alpha(self, t: Times) -> Times:
        return jnp.exp(-0.5 * integrated_beta(t, self.beta_min, self.beta_max))

    def sigma(self, t: Times) -> Times:
        return -jnp.expm1(-integrated_beta(t, self.beta_min, self.beta_max))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        integral = 2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr))
        return time_of_integrated_beta(integral, self.beta_min, self.beta_max)
