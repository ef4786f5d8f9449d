r"""DDPM's chain of N steps as a variance-preserving process: the discrete twin of `vp`.

    β_i = β_min/N + (i − 1) δ,   δ = (β_max − β_min)/(N (N − 1)),   i = 1 … N       (10⁻⁴ … 0.02 for the defaults)
    x_i = √(1 − β_i) x_{i−1} + √β_i z,   so   α_i² = Π_{j ≤ i} (1 − β_j)

The factors are linear in j, so their product is a ratio of Gamma functions, which continues it to every real i: with
β(i) = β_min/N + (i − 1) δ and A = i + (1 − β(i))/δ, a constant,

    B(i) = −log α_i² = −i log δ + log Γ(A − i) − log Γ(A),   t = i/N
    b(i) = dB/di = −log δ − ψ(A − i) = −log(1 − β(i)) + 1/(2z) + 1/(12z²) − 1/(120z⁴) + …,   z = A − i = (1 − β(i))/δ
    α = e^{−B/2},   σ² = 1 − e^{−B},   f = −N b/2,   g² = N b

This SDE has the chain's marginals and transitions at t = i/N, exactly, and is smooth in between. As N → ∞ it becomes
`vp`, to O(1/N). B is a table over whole steps (in float64, held as the sum of two float32 numbers) and the integral of
b over the part of a step, by Gauss's rule with 3 nodes.

Source: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020, eq. 2–4 and sec. 4; Song et al. 2021,
appendix C. The Gamma function is ours.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_sde.errors import Checks
from score_sde.sde.base import SDE, Times, gauss, one_minus_exp

SMALLEST_Z = 8.0  # where the series of ψ, cut after z⁻⁴, errs by 1/(252 z⁶) = 2e-8
NEWTON_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(SDE):
    """Variance preserving, DDPM's chain of `steps` steps; t_min is its first step or later. See the module."""

    curve: ClassVar[str] = "vp"

    steps: int = 1000
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    T: float = 1.0

    def check(self) -> None:
        with Checks() as check:
            if not 2 <= self.steps <= 1_000_000:
                check.that(False, f"steps must lie in [2, 1e6], not {self.steps}")
                return
            check.that(
                0 < self.beta_min <= self.beta_max,
                f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max, not {self.beta_min}, {self.beta_max}",
            )
            enough = 1 - self.beta_max / self.steps >= SMALLEST_Z * self._delta
            check.that(enough, f"{self.steps} steps are too few for beta_max={self.beta_max}; take more, or less noise")
            first = self.t_min * self.steps >= 1 - 1e-6
            check.that(first, f"t_min must be at least the first step, 1/steps = {1 / self.steps:g}, not {self.t_min}")
            check.that(self.T <= 1, f"T must be at most 1, the last step, not {self.T}")

    @property
    def _delta(self) -> float:
        return (self.beta_max - self.beta_min) / (self.steps * (self.steps - 1))

    @property
    def betas(self) -> Float[np.ndarray, "steps"]:
        """β_1 … β_N in float64."""
        return np.linspace(self.beta_min, self.beta_max, self.steps) / self.steps

    @property
    def step_times(self) -> Float[np.ndarray, "steps"]:
        return np.arange(1, self.steps + 1) / self.steps

    def step_label(self, t: Times) -> Times:
        """0 for the first step, N − 1 for the last."""
        return t * self.steps - 1

    def alpha(self, t: Times) -> Times:
        return jnp.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Times) -> Times:
        return jnp.sqrt(one_minus_exp(self.integrated_beta(t)))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        integral = jax.nn.softplus(-log_snr)
        table = self._tables(log_snr.dtype)
        step = jnp.clip(jnp.searchsorted(table.high, integral, side="right") - 1, 0, self.steps - 1)
        wanted = (integral - table.high[step]) - table.low[step]
        part = wanted / self._rate(step.astype(log_snr.dtype) + 0.5)
        for _ in range(NEWTON_STEPS):
            part = part - (self._partial(step, part) - wanted) / self._rate(step.astype(log_snr.dtype) + part)
        return table.start_high[step] + (table.start_low[step] + part / self.steps)

    def integrated_beta(self, t: Times) -> Times:
        """B at i = N t."""
        table = self._tables(t.dtype)
        step: Int[Array, "*times"] = jnp.clip(jnp.floor(t * self.steps).astype(jnp.int32), 0, self.steps - 1)
        part = ((t - table.start_high[step]) - table.start_low[step]) * self.steps
        return table.high[step] + (table.low[step] + self._partial(step, part))

    def _partial(self, step: Int[Array, "*times"], part: Times) -> Times:
        """∫ b from a whole step over `part` of the next."""
        start = step.astype(part.dtype)
        return gauss(lambda extra: self._rate(start[None] + extra), jnp.zeros_like(part), part, nodes=3)

    def _rate(self, position: Times) -> Times:
        """b(i)."""
        beta = self.beta_min / self.steps + (position - 1) * self._delta
        inverse = self._delta / (1 - beta)  # 1/z
        return -jnp.log1p(-beta) + inverse * (0.5 + inverse * (1 / 12 - inverse**2 / 120))

    def _tables(self, dtype: Any) -> "_Tables":
        tables = _tables(self.steps, self.beta_min, self.beta_max)
        return _Tables(*(jnp.asarray(table, dtype) for table in tables))


class _Tables(NamedTuple):
    """For each step: B before it and its first time, each rounded to float32 and what the rounding left."""

    high: Float[Array, "steps"]
    low: Float[Array, "steps"]
    start_high: Float[Array, "steps"]
    start_low: Float[Array, "steps"]


@functools.cache
def _tables(steps: int, beta_min: float, beta_max: float) -> tuple[np.ndarray, ...]:
    rate = -np.log1p(-np.linspace(beta_min, beta_max, steps) / steps)
    before = np.concatenate([[0.0], np.cumsum(rate)[:-1]])
    return *_two_floats(before), *_two_floats(np.arange(steps) / steps)


def _two_floats(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = value.astype(np.float32).astype(np.float64)
    return high, value - high
