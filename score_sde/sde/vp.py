r"""Variance-preserving process with linear β (the continuous form of DDPM).

    α_t = e^{−B/2},   σ_t² = 1 − e^{−B},   f = −β/2,   g² = β,   B = ∫₀ᵗ β as in `linear_beta`
    log_snr = −log(e^B − 1),   so   B = log(1 + e^{−log_snr}) = softplus(−log_snr)

Source: Song et al. 2021, appendix B and C (eq. 29, 33).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from score_sde.sde.base import Times, one_minus_exp
from score_sde.sde.linear_beta import LinearBeta


@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(LinearBeta):
    """Variance preserving, linear β. See the module."""

    curve: ClassVar[str] = "vp"

    def sigma(self, t: Times) -> Times:
        return jnp.sqrt(one_minus_exp(self.integrated_beta(t)))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return self.time_of_integrated_beta(jax.nn.softplus(-log_snr))
