r"""SA-Solver: stochastic Adams methods, predictor and corrector, with stochasticity τ(t).

The exact step of `exponential` with η = τ and the polynomial through D_n and the p − 1 values before it (predictor),
and through D̂_{n+1} = D(x̂_{n+1}) and c − 1 values before it (corrector); both with the same noise z. τ is `tau`
while σ̄ lies in [low, high], and 0 elsewhere, constant over a step.

With τ = 0 these are the Adams–Bashforth and Adams–Moulton methods in λ, of order p, and min(c, p + 1) with
corrector. With τ > 0 the weak order is 2 where that is 2 or more: see `multistep` for why a method of two values
reaches it.

Source: Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023, eq. 14 and 17.
"""

import dataclasses
import itertools
from typing import ClassVar

from score_sde.errors import Checks
from score_sde.samplers import dpm_solver, exponential
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class SASolver(LinearSolver):
    """predictor_order: p, 1 to 3. corrector_order: c, 0 for no corrector, to 4. tau, low, high: see the module."""

    from_pure_noise: ClassVar[bool] = False

    predictor_order: int = 3
    corrector_order: int = 3
    tau: float = 1.0
    low: float = 0.0
    high: float = 1e10

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.predictor_order <= 3, f"predictor_order must be 1, 2 or 3, not {self.predictor_order}")
            check.that(
                0 <= self.corrector_order <= 4, f"corrector_order must lie in [0, 4], not {self.corrector_order}"
            )
            check.that(self.tau >= 0, f"tau must be at least 0, not {self.tau}")
            check.that(0 <= self.low <= self.high, f"0 <= low <= high must hold, not {self.low}, {self.high}")

    @property
    def stochastic(self) -> bool:
        return self.tau > 0

    @property
    def convergence(self) -> float:
        return min(self._order, 2) if self.stochastic else self._order

    @property
    def _order(self) -> int:
        """Without noise."""
        p, c = self.predictor_order, self.corrector_order
        return min(c, p + 1) if c else p

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x, c = tape.start, self.corrector_order
        start = int(self.convergence) - 1  # the order of single steps to start with, where no τ is
        inside = dpm_solver.inside(schedule, levels[: start + 1], max(1, start))
        nodes = [exponential.evaluate(tape, "data", x, levels[0])]
        for n, (t, s) in enumerate(itertools.pairwise(levels)):
            last = n == len(levels) - 2
            eta = self.tau if self.low <= t.sigma_bar <= self.high else 0.0
            single = len(nodes) + (c > 0 and not last) < start and not self.stochastic
            if single:
                mean = exponential.single_step(tape, "data", x, t, s, inside[n], nodes[0])
            else:
                mean = exponential.predict("data", x, t, s, nodes[: self.predictor_order], eta)
            noise = exponential.spread(t, s, eta) * tape.noise() if eta else Vector({})
            ahead = mean + noise
            if last:
                return ahead, mean
            new = exponential.evaluate(tape, "data", ahead, s)
            if c and not single:
                x = exponential.predict("data", x, t, s, [new, *nodes][:c], eta) + noise
                tape.store(x)
            else:
                x = ahead
            nodes = [new, *nodes][: max(self.predictor_order, c - 1)]
        raise AssertionError("a grid has two times or more")
