r"""EDM's sampler: Heun's method in σ̄, with churn; and Restart.

With y = x/α, dy/dσ̄ = ε̂, each step from σ̄_t to σ̄_s begins, while σ̄_t lies in [churn_min, churn_max], by raising
the level,

    γ = min(churn/N, √2 − 1),   σ̂ = (1 + γ) σ̄_t,   y ← y + S √(σ̂² − σ̄_t²) z,      S = noise_scale

and then is one of Heun's method from σ̂ to σ̄_s. No level is raised beyond the process's own. With S = 1 adding
noise is exact in law, so that the law of the samples converges with Heun's order 2; without churn it is Heun's
method.

Restart runs the same without churn, and where it comes down to the grid's time nearest to `low`, goes back up to `high`
with noise and down again by `restart_steps` steps of a Karras grid, `repeats` times:

    y ← y + √(high² − low²) z

With `restart_steps` as they are, what the restarts' own steps leave stays however many steps the run has: with restarts
a run has no order, unless their steps are made to grow with the run's, when it is Heun's 2.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 2; Xu et
al., "Restart Sampling for Improving Generative Processes", 2023, algorithm 1.
"""

import dataclasses
import itertools
import math
from typing import ClassVar

import numpy as np

from score_sde.errors import Checks
from score_sde.samplers import runge_kutta
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule

SIGMA_BAR = runge_kutta.VARIABLES["sigma_bar"]
HIGHEST_CHURN = math.sqrt(2) - 1
RHO = 7.0  # of a restart's grid
MOST, MOST_STEPS = 1000, 10_000  # of steps and of repeats, and of all steps of all restarts


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSampler(LinearSolver):
    """churn, churn_min, churn_max, noise_scale: S_churn, S_tmin, S_tmax, S_noise of the paper. See the module."""

    from_pure_noise: ClassVar[bool] = False

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = 1e10
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.churn >= 0, f"churn must be at least 0, not {self.churn}")
            check.that(0 <= self.churn_min <= self.churn_max, "0 <= churn_min <= churn_max must hold")
            check.that(self.noise_scale > 0, f"noise_scale must be positive, not {self.noise_scale}")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    @property
    def convergence(self) -> float | None:
        return None if self.stochastic and self.noise_scale != 1 else 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = mean = tape.start
        highest = levels[0].sigma_bar
        gamma = min(self.churn / (len(levels) - 1), HIGHEST_CHURN)
        churned = [self.churn_min <= t.sigma_bar <= self.churn_max for t in levels[:-1]]
        raised = [(1 + gamma * c) * t.sigma_bar for t, c in zip(levels[:-1], churned, strict=True)]
        for t, s, hat in zip(levels, levels[1:], schedule.at_sigma_bar(np.minimum(raised, highest)), strict=False):
            if hat.sigma_bar > t.sigma_bar * (1 + 1e-9):
                added = self.noise_scale * math.sqrt(hat.sigma_bar**2 - t.sigma_bar**2)
                x = hat.alpha / t.alpha * x + hat.alpha * added * tape.noise()
                x = runge_kutta.advance(tape, x, s, [hat, s], runge_kutta.HEUN, SIGMA_BAR)
            else:
                x = runge_kutta.advance(tape, x, s, [t, s], runge_kutta.HEUN, SIGMA_BAR)
            mean = x
        return x, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart(LinearSolver):
    """low, high: of σ̄. restart_steps, repeats: of each interval. One entry an interval. See the module."""

    from_pure_noise: ClassVar[bool] = False

    low: tuple[float, ...] = (0.06,)
    high: tuple[float, ...] = (0.3,)
    restart_steps: tuple[int, ...] = (3,)
    repeats: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        with Checks() as check:
            lengths = {len(each) for each in (self.low, self.high, self.restart_steps, self.repeats)}
            check.that(len(lengths) == 1, "low, high, restart_steps and repeats must have as many entries each")
            for low, high in zip(self.low, self.high, strict=False):
                check.that(0 < low < high, f"0 < low < high must hold, not {low}, {high}")
            check.that(
                all(1 <= steps <= MOST for steps in self.restart_steps), f"restart_steps must lie in [1, {MOST}]"
            )
            check.that(all(0 <= count <= MOST for count in self.repeats), f"repeats must lie in [0, {MOST}]")
            inside = sum(steps * count for steps, count in zip(self.restart_steps, self.repeats, strict=False))
            check.that(
                inside <= MOST_STEPS, f"restart_steps times repeats must come to {MOST_STEPS} at most, not {inside}"
            )

    @property
    def stochastic(self) -> bool:
        return any(self.repeats)

    @property
    def convergence(self) -> float | None:
        return None if self.stochastic else 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = tape.start
        sigma_bars = np.array([level.sigma_bar for level in levels])
        due: dict[int, list[int]] = {}
        for number, low in enumerate(self.low):
            due.setdefault(1 + int(np.argmin(np.abs(np.log(sigma_bars[1:] / low)))), []).append(number)
        for n, (t, s) in enumerate(itertools.pairwise(levels), 1):
            x = runge_kutta.advance(tape, x, s, [t, s], runge_kutta.HEUN, SIGMA_BAR)
            for number in due.get(n, []):
                high = min(self.high[number], levels[0].sigma_bar)
                if high > s.sigma_bar:
                    x = self._restart(tape, schedule, x, s, high, number)
        return x, x

    def _restart(self, tape: Tape, schedule: Schedule, x: Vector, low: Level, high: float, number: int) -> Vector:
        ramp = np.linspace(1, 0, self.restart_steps[number] + 1)[:-1]
        ends = low.sigma_bar ** (1 / RHO), high ** (1 / RHO)
        way = [*schedule.at_sigma_bar((ends[0] + ramp * (ends[1] - ends[0])) ** RHO), low]
        for _ in range(self.repeats[number]):
            added = math.sqrt(way[0].sigma_bar ** 2 - low.sigma_bar**2)
            x = way[0].alpha / low.alpha * x + way[0].alpha * added * tape.noise()
            for t, s in itertools.pairwise(way):
                x = runge_kutta.advance(tape, x, s, [t, s], runge_kutta.HEUN, SIGMA_BAR)
        return x
