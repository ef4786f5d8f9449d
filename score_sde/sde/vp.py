r"""Variance-preserving process with linear β (the continuous form of DDPM).

    B(t) = ∫₀ᵗ β = β_min t + (β_max − β_min) t²/2  (T = 1),   β(t) = β_min + t (β_max − β_min)
    α_t = e^{−B/2},   σ_t² = 1 − e^{−B},   f = −β/2,   g² = β
    log_snr = −log(e^B − 1),   so   B = log(1 + e^{−log_snr}) = softplus(−log_snr)

Source: Song et al. 2021, appendix B and C (eq. 29, 33).
"""

import dataclasses

import jax
import jax.numpy as jnp

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Times


def check_beta(t_min: float, beta_min: float, beta_max: float) -> None:
    """Raises UserError unless 0 < beta_min ≤ beta_max, and t_min > 0: at 0 there is no noise, hence no score."""
    if not t_min > 0:
        raise UserError(f"t_min must be positive, not {t_min}")
    if not 0 < beta_min <= beta_max:
        raise UserError(f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max, not {beta_min}, {beta_max}")


def integrated_beta(t: Times, beta_min: float, beta_max: float) -> Times:
    """B(t) = ∫₀ᵗ β."""
    return t * (beta_min + 0.5 * t * (beta_max - beta_min))


def time_of_integrated_beta(integral: Times, beta_min: float, beta_max: float) -> Times:
    """The t with B(t) = `integral`: 2B / (β_min + √(β_min² + 2 (β_max − β_min) B)), without cancellation."""
    return 2 * integral / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(SDE):
    """Variance preserving, linear β. See the module."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    T: float = 1.0

    def check(self) -> None:
        check_beta(self.t_min, self.beta_min, self.beta_max)

    def alpha(self, t: Times) -> Times:
        return jnp.exp(-0.5 * integrated_beta(t, self.beta_min, self.beta_max))

    def sigma(self, t: Times) -> Times:
        return jnp.sqrt(-jnp.expm1(-integrated_beta(t, self.beta_min, self.beta_max)))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return time_of_integrated_beta(jax.nn.softplus(-log_snr), self.beta_min, self.beta_max)
