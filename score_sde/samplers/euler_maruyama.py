r"""Euler–Maruyama on the reverse-time SDE with stochasticity η.

    x_s = x_t − (t − s) [f x_t − ½ (1 + η²) g² score] + η g √(t − s) z,   score = −ε̂/σ_t,   z ~ N(0, I)

η = 1 is Song et al.'s predictor; η = 0 Euler's method on the probability-flow ODE. Source: Song et al. 2021.
"""

import dataclasses
import itertools
import math

from score_sde.errors import UserError
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import Process


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama(LinearSolver):
    """Euler–Maruyama with stochasticity eta ≥ 0. See the module."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise UserError(f"eta must be at least 0, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if sde.ends_in_noise:
            raise UserError("Euler-Maruyama needs f and g, which are infinite where the process ends in pure noise")

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = mean = tape.start
        for t, s in itertools.pairwise(levels):
            h = t.t - s.t
            _, noise = tape.evaluate(x, t)
            mean = (1 - h * t.f) * x - 0.5 * h * (1 + self.eta**2) * t.g**2 / t.sigma * noise
            x = mean + self.eta * t.g * math.sqrt(h) * tape.noise() if self.eta else mean
        return x, mean
