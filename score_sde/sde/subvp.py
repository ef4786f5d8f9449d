r"""Sub-variance-preserving process: the VP process with a smaller diffusion.

    α_t = e^{−B/2},   σ_t = 1 − e^{−B},   f = −β/2,   g² = β (1 − e^{−2B}),   B = ∫₀ᵗ β as in `linear_beta`
    α/σ = 1 / (2 sinh(B/2)),   so   B = 2 asinh(e^{−log_snr/2} / 2)

Source: Song et al. 2021, appendix B (eq. 27–29).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde.sde.base import Times, one_minus_exp
from score_sde.sde.linear_beta import LinearBeta


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(LinearBeta):
    """Sub-variance preserving, linear β. See the module."""

    curve: ClassVar[str] = "subvp"

    def sigma(self, t: Times) -> Times:
        return one_minus_exp(self.integrated_beta(t))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return self.time_of_integrated_beta(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))
