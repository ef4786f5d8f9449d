r"""DDIM(η): the exact Gaussian step given D, with a share η of the posterior's noise.

    G² = σ_t² − (α_t/α_s)² σ_s²                  (the variance of x_t given x_s)
    ν  = η σ_s G / σ_t                           (η = 1: the standard deviation of q(x_s | x_t, x_0))
    x_s = α_s D + √(σ_s² − ν²) ε̂ + ν z,   z ~ N(0, I)

η = 1 is ancestral sampling with the true posterior variance (DDPM's β̃, where Song et al. 2021 take β); η = 0 the
deterministic DDIM, which is Euler's method for the probability-flow ODE in σ̄ = σ/α.
Source: Song, Meng & Ermon 2021, eq. 12; Ho et al. 2020, eq. 6–7.
"""

import dataclasses
import itertools
import math

from score_sde.errors import UserError
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule, transition


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(LinearSolver):
    """DDIM with stochasticity 0 ≤ eta ≤ 1. See the module."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie in [0, 1], not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        return _gaussian_steps(tape, levels, self.eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(LinearSolver):
    """Ancestral sampling: DDIM with eta = 1. See the module."""

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        return _gaussian_steps(tape, levels, 1.0)


def _gaussian_steps(tape: Tape, levels: list[Level], eta: float) -> tuple[Vector, Vector]:
    x = mean = tape.start
    for t, s in itertools.pairwise(levels):
        ratio = eta * transition(s, t)[1] / t.sigma  # ν/σ_s
        data, noise = tape.evaluate(x, t)
        mean = s.alpha * data + s.sigma * math.sqrt(1 - ratio**2) * noise
        x = mean + s.sigma * ratio * tape.noise() if eta else mean
    return x, mean
