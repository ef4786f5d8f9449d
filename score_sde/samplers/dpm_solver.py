r"""DPM-Solver and DPM-Solver++, single-step: exponential Runge–Kutta methods in λ for the probability-flow ODE.

With P the noise (DPM-Solver) or the data (DPM-Solver++), h = λ_s − λ_t, and "polynomial" the exact step of
`exponential` with a polynomial through some predictions in the place of P,

    order 1    constant P_t; DDIM                                                       1 evaluation
    order 2    u at λ_t + r h by order 1; then by P_t and P(u), r = ½ or 1:             2 evaluations
               "midpoint"  weight of the whole step on P_t + (P(u) − P_t)/(2r)
               "taylor"    the line through both, integrated exactly
    order 3    u₁ at λ_t + h/3 by order 1; u₂ at λ_t + 2h/3 by the line through P_t and P(u₁);
               then the line through P_t and P(u₂)                                      3 evaluations

r = 1 is the Heun form of order 2: u is at s itself. Source: Lu et al., "DPM-Solver", 2022, algorithms 1 and 2;
"DPM-Solver++", 2022, algorithm 1. Their third order is on a line too: the quadrature with nodes 0 and ⅔ is of degree 2.
"""

import dataclasses
from typing import ClassVar

from score_sde.errors import Checks
from score_sde.samplers import exponential
from score_sde.samplers.base import check_finite
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import Process

FORMS = ("midpoint", "taylor")
SHARES: dict[int, tuple[float, ...]] = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}


def inside(schedule: Schedule, levels: list[Level], order: int) -> list[list[Level]]:
    """The levels inside each step of a method of that order."""
    return schedule.inside(levels, *SHARES[order]) if order > 1 else [[] for _ in levels[1:]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleStep(LinearSolver):
    """Abstract: a solver has a prediction. order: 1, 2 or 3. form: of order 2. r: of order 2. See the module."""

    prediction: ClassVar[str]

    order: int = 2
    form: str = "midpoint"
    r: float = 0.5

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.order in SHARES, f"order must be 1, 2 or 3, not {self.order}")
            check.name("form", self.form, FORMS)
            check.that(0 < self.r <= 1, f"r must lie in (0, 1], not {self.r}")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def convergence(self) -> float:
        return self.order

    @property
    def evaluations_per_step(self) -> int:
        return self.order

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if self.order > 1 or self.prediction == "noise":
            check_finite(sde)

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = tape.start
        shares = (self.r,) if self.order == 2 else SHARES[self.order]
        if shares == (1.0,):
            between = [[s] for s in levels[1:]]
        else:
            between = schedule.inside(levels, *shares) if shares else [[] for _ in levels[1:]]
        for t, s, middle in zip(levels, levels[1:], between, strict=False):
            first = exponential.evaluate(tape, self.prediction, x, t)
            x = exponential.single_step(tape, self.prediction, x, t, s, middle, first, self.form)
        return x, x


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(SingleStep):
    """DPM-Solver, in the noise. See the module."""

    prediction: ClassVar[str] = "noise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP(SingleStep):
    """DPM-Solver++, in the data. See the module."""

    prediction: ClassVar[str] = "data"
