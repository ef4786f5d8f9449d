r"""DPM-2 of Karras et al.'s and k-diffusion's code: the midpoint method in σ̄ with the geometric middle; and with noise.

With y = x/α, dy/dσ̄ = ε̂, from σ̄_t to `down`, and back up to σ̄_s with noise,

    up = η σ̄_s √(1 − q²),   down = √(σ̄_s² − up²) = σ̄_s √(1 − η² + η² q²),   q = σ̄_s/σ̄_t        (η = 0: down = σ̄_s)
    middle = √(σ̄_t down),   u = y + (middle − σ̄_t) ε̂_t,   y ← y + (down − σ̄_t) ε̂(u, middle) + up z

The geometric middle is off the arithmetic one by O(h²), which keeps order 2. Adding noise is exact in law, so that with
noise the law of the samples converges as the ODE's solution does, with order 2 as well.

Source: Karras et al. 2022, appendix; Crowson, k-diffusion (`sample_dpm_2`, `sample_dpm_2_ancestral`).
"""

import abc
import dataclasses
import itertools
import math
from typing import ClassVar

from score_sde.errors import UserError
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule


def down_and_up(sigma_bar_t: float, sigma_bar_s: float, eta: float) -> tuple[float, float]:
    """The level to integrate to, and the standard deviation of the noise that leads from it to σ̄_s."""
    share = sigma_bar_s / sigma_bar_t
    up = eta * sigma_bar_s * math.sqrt((1 - share) * (1 + share))
    return sigma_bar_s * math.sqrt((1 - eta**2) + (eta * share) ** 2), up


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricMidpoint(LinearSolver):
    """Abstract: a solver has a stochasticity. See the module."""

    from_pure_noise: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def noise_level(self) -> float:
        """η."""

    @property
    def stochastic(self) -> bool:
        return self.noise_level > 0

    @property
    def convergence(self) -> float:
        return 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        eta = self.noise_level
        x = mean = tape.start
        pairs = list(itertools.pairwise(levels))
        targets = [down_and_up(t.sigma_bar, s.sigma_bar, eta) for t, s in pairs]
        middles = schedule.at_sigma_bar(
            [math.sqrt(t.sigma_bar * down) for (t, _), (down, _) in zip(pairs, targets, strict=True)]
        )
        for (t, s), (down, up), middle in zip(pairs, targets, middles, strict=True):
            _, noise = tape.evaluate(x, t)
            y = x / t.alpha
            point = middle.alpha * (y + (middle.sigma_bar - t.sigma_bar) * noise)
            _, noise = tape.evaluate(point, middle)
            mean = s.alpha * (y + (down - t.sigma_bar) * noise)
            x = mean + s.alpha * up * tape.noise() if eta else mean
        return x, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPM2(GeometricMidpoint):
    """Without noise. See the module."""

    @property
    def noise_level(self) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPM2Ancestral(GeometricMidpoint):
    """With stochasticity 0 ≤ eta ≤ 1. See the module."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie in [0, 1], not {self.eta}")

    @property
    def noise_level(self) -> float:
        return self.eta
