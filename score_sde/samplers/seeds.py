r"""SEEDS-2: a stochastic exponential Runge–Kutta method of two stages, of weak order 2.

Of the reverse process with stochasticity η > 0, from t by the middle m (in λ) to s, in the exact steps of
`exponential`,

    u    =  step from t to m with D_t            + noise n₁
    x_s  =  step from t to s with D(u, m)        + noise n₂ + e^{−η² (λ_s − λ_m)} (σ_s/σ_m) n₁

both stages on one path of the noise: what n₁ becomes at s is part of x_s. So D(u, m) holds what half a step of noise
does to D, which is what an average over the step must hold: covariances come out right to O(h³) a step, as means do.

Source: Gonzalez et al., "SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion Models", 2023.
"""

import dataclasses
from typing import ClassVar

from score_sde.errors import UserError
from score_sde.samplers import exponential
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEEDS2(LinearSolver):
    """Stochasticity eta ≥ 0. See the module."""

    from_pure_noise: ClassVar[bool] = False

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise UserError(f"eta must be at least 0, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def convergence(self) -> float:
        return 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = mean = tape.start
        eta = self.eta
        for t, s, (m,) in zip(levels, levels[1:], schedule.inside(levels, 0.5), strict=False):
            first = exponential.evaluate(tape, "data", x, t)
            point = exponential.predict("data", x, t, m, [first], eta)
            noise = Vector({})
            if eta:
                noise = exponential.spread(t, m, eta) * tape.noise()
                point = point + noise
            middle = exponential.evaluate(tape, "data", point, m)
            mean = exponential.predict("data", x, t, s, [middle], eta) + exponential.decay("data", m, s, eta) * noise
            x = mean + exponential.spread(m, s, eta) * tape.noise() if eta else mean
        return x, mean
