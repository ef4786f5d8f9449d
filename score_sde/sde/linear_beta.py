r"""What the processes with a linear β share.

β(t) = β_min + t (β_max − β_min),   B(t) = ∫₀ᵗ β = β_min t + (β_max − β_min) t²/2
α_t = e^{−B/2},   f = −β/2
"""

import dataclasses

import jax.numpy as jnp

from score_sde.errors import Checks
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBeta(SDE):
    """Abstract: α of a linear β. A process adds σ and the inverse of log_snr."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    T: float = 1.0

    def check(self) -> None:
        beta_min, beta_max = self.beta_min, self.beta_max
        with Checks() as check:
            check.that(
                0 < beta_min <= beta_max,
                f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max, not {beta_min}, {beta_max}",
            )
            # At t = 0 there is no noise, hence no score.
            check.that(self.t_min > 0, f"t_min must be positive, not {self.t_min}")

    def alpha(self, t: Times) -> Times:
        return jnp.exp(-0.5 * self.integrated_beta(t))

    def integrated_beta(self, t: Times) -> Times:
        """B(t)."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def time_of_integrated_beta(self, integral: Times) -> Times:
        """The t with B(t) = `integral`: 2B / (β_min + √(β_min² + 2 (β_max − β_min) B)), without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))
