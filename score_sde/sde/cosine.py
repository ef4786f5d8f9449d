r"""Variance-preserving process with the cosine schedule of "Improved DDPM".

    φ(t) = (π/2) (t + s)/(1 + s),   α_t = cos φ(t) / cos φ(0),   σ_t² = 1 − α_t²

With c = cos φ(0), and the distance to the end in place of φ in the second half,

    α_t = sin((π/2)(1 − t)/(1 + s)) / c,   σ_t = √(sin(φ(t) − φ(0)) sin(φ(t) + φ(0))) / c

with φ(t) − φ(0) = (π/2) t/(1 + s), neither of which cancels. In the first half α is the cosine as it stands: its
derivative, sin φ, is small there, and would be lost as the cosine of an angle near π/2.

At t = 1 no signal is left and f, g are infinite; the paper clips β of the last discrete steps. Here the process ends at
T = 0.9946 (Lu et al. 2022, appendix D), before that happens; T = 1 is allowed.

Source: Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 17.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from score_sde.errors import Checks
from score_sde.sde.base import SDE, Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(SDE):
    """Variance preserving, cosine schedule with offset s. See the module."""

    curve: ClassVar[str] = "vp"

    offset: float = 0.008
    t_min: float = 1e-5
    T: float = 0.9946

    def check(self) -> None:
        with Checks() as check:
            check.that(0 <= self.offset <= 1, f"offset must lie in [0, 1], not {self.offset}")
            inside = self.t_min > 0 and self.T <= 1
            check.that(inside, f"t_min must be positive and T at most 1, not {self.t_min}, {self.T}")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Times) -> Times:
        from_start, from_end = self._rate * (t + self.offset), self._rate * (1 - t)
        return jnp.where(t < 0.5, jnp.cos(from_start), jnp.sin(from_end)) / math.cos(self._rate * self.offset)

    def sigma(self, t: Times) -> Times:
        product = jnp.sin(self._rate * t) * jnp.sin(self._rate * (t + 2 * self.offset))
        return jnp.sqrt(product) / math.cos(self._rate * self.offset)

    def time_of_log_snr(self, log_snr: Times) -> Times:
        # cos²φ = c² sigmoid(log_snr), sin²φ − sin²φ(0) = c² sigmoid(−log_snr); the latter is the product of
        # sin(φ − φ(0)) and sin(φ + φ(0)), which gives the first factor without a difference of near-equal angles.
        cos_0, sin_0 = math.cos(self._rate * self.offset), math.sin(self._rate * self.offset)
        signal, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        cos, sin = cos_0 * jnp.sqrt(signal), jnp.sqrt(sin_0**2 * signal + noise)
        sin_difference = cos_0**2 * noise / (sin * cos_0 + cos * sin_0)
        return jnp.arctan2(sin_difference, cos * cos_0 + sin * sin_0) / self._rate
