r"""What the networks of score_sde share in how they take data and noise levels.

    x ← 2x − 1                      unless `centered`: data in [0, 1]
    output ← output / σ             where `scale_by_sigma`: the network predicts the score

σ is the noise condition itself, or, for networks that are told the number k of one of N levels, counted from the
largest,

    σ_k = σ_max (σ_min/σ_max)^{k/(N − 1)}

A number between two levels, as a sampler may ask for between the steps of a chain, is of a σ between theirs. The
original code takes σ of the whole part of k, and so differs there.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from score_sde.errors import Checks
from score_sde.models.conditioning import Conditions
from score_sde.models.layers import across
from score_sde.typing import Data, PerSample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmas(Conditions):
    """Settings. centered, scale_by_sigma: see the module. sigma_min, sigma_max, noise_levels: of the levels told by
    number, which must be those of the process."""

    centered: bool = True
    scale_by_sigma: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    noise_levels: int = 1000

    def check_sigmas(self, check: Checks) -> None:
        """Notes what is wrong with these settings."""
        rises = 0 < self.sigma_min < self.sigma_max
        check.that(rises, f"0 < sigma_min < sigma_max must hold, not {self.sigma_min} and {self.sigma_max}")
        check.that(self.noise_levels >= 2, f"noise_levels must be at least 2, not {self.noise_levels}")

    def to_centre(self, x: Data) -> Data:
        """The input in [−1, 1]."""
        return x if self.centered else 2 * x - 1

    def sigma_of_level(self, level: PerSample) -> PerSample:
        """σ of a level's number, 0 for the largest."""
        log_ratio = math.log(self.sigma_min / self.sigma_max)
        return self.sigma_max * jnp.exp(log_ratio / (self.noise_levels - 1) * level)


def over(output: Data, sigma: PerSample) -> Float[Array, "batch *shape"]:
    """output / σ of each sample."""
    return output / across(sigma[:, None], output.ndim)
