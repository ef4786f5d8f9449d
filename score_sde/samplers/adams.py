r"""Adams–Bashforth methods for the probability-flow ODE in the noise ε̂: linear multistep in σ̄, and DEIS.

    lms     d(x/α)/dσ̄ = ε̂:   x_s/α_s = x_t/α_t + Σ_j ε̂_j ∫ ℓ_j(σ̄) dσ̄,        ℓ_j the polynomials in σ̄
    deis    the same with ℓ_j(t), the polynomials in time: "time Adams–Bashforth", tAB-DEIS

through the last `order` predictions. The integrals are computed by Gauss's rule to the last digits. A run starts
with single steps of an order that keeps its own, see `multistep`: Runge–Kutta steps in σ̄ for lms, DPM-Solver steps
for deis.

Source: Crowson's k-diffusion for lms ("PLMS" of Liu et al. 2022 is of this kind, with constant steps); Zhang & Chen,
"Fast Sampling of Diffusion Models with Exponential Integrator", 2023, eq. 14.
"""

import abc
import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np

from score_sde.errors import Checks
from score_sde.samplers import dpm_solver, exponential, runge_kutta
from score_sde.samplers.exponential import Node
from score_sde.samplers.linear import LinearSolver, Tape, Vector, combine
from score_sde.samplers.multistep import STARTS, lowered, start_order
from score_sde.samplers.schedule import Level, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth(LinearSolver):
    """Abstract: a method has a variable of its polynomials, and single steps to start with.

    order: of the method, up to `highest`. start, last_order: see `multistep`.
    """

    from_pure_noise: ClassVar[bool] = False

    highest: ClassVar[int]

    order: int = 3
    start: str = "exact"
    last_order: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.order <= self.highest, f"order must lie in [1, {self.highest}], not {self.order}")
            check.name("start", self.start, STARTS)
            check.that(0 <= self.last_order <= self.order, f"last_order must lie in [0, {self.order}]")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def convergence(self) -> float:
        return lowered(self.order, self.start, self.last_order)

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x, nodes = tape.start, list[Node]()
        inside = self.stages(schedule, levels[: self.order])
        sigma_bars, positions = self.quadrature(schedule, levels)
        for n, (t, s) in enumerate(itertools.pairwise(levels)):
            first = tape.evaluate(x, t)
            nodes = [Node(self.position(t), first[1]), *nodes][: self.order]
            if start_order(self.order, len(nodes), self.start):
                x = self.single(tape, x, t, s, inside[n], first)
                continue
            limit = self.last_order if self.last_order and n == len(levels) - 2 else self.order
            used = nodes[:limit]
            polynomials = exponential.lagrange([node.position for node in used], positions[n])
            weights = s.alpha * (polynomials @ sigma_bars[n])
            x = s.alpha / t.alpha * x + combine(weights, [node.prediction for node in used])
        return x, x

    @abc.abstractmethod
    def position(self, level: Level) -> float:
        """The variable of the polynomials."""

    @abc.abstractmethod
    def quadrature(self, schedule: Schedule, levels: list[Level]) -> tuple[Any, Any]:
        """`(steps, points)` each: the weights of ∫ dσ̄ over each step, and the variable at its points."""

    @abc.abstractmethod
    def stages(self, schedule: Schedule, levels: list[Level]) -> Any:
        """What `single` is told of each step."""

    @abc.abstractmethod
    def single(
        self, tape: Tape, x: Vector, t: Level, s: Level, inside: list[Level], first: tuple[Vector, Vector]
    ) -> Vector:
        """A single step of order − 1 to start with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMultistep(AdamsBashforth):
    """Adams–Bashforth in σ̄. See the module."""

    highest: ClassVar[int] = 4

    def position(self, level: Level) -> float:
        return level.sigma_bar

    def quadrature(self, schedule: Schedule, levels: list[Level]) -> tuple[Any, Any]:
        sigma_bar = np.array([level.sigma_bar for level in levels])
        abscissae, weights = np.polynomial.legendre.leggauss(self.highest)
        half = 0.5 * np.diff(sigma_bar)[:, None]
        return half * weights, sigma_bar[:-1, None] + half * (1 + abscissae)

    def stages(self, schedule: Schedule, levels: list[Level]) -> list[list[Level]]:
        return runge_kutta.stages(schedule, levels, self._tableau, runge_kutta.VARIABLES["sigma_bar"])

    def single(
        self, tape: Tape, x: Vector, t: Level, s: Level, inside: list[Level], first: tuple[Vector, Vector]
    ) -> Vector:
        return runge_kutta.advance(tape, x, s, inside, self._tableau, runge_kutta.VARIABLES["sigma_bar"], first)

    @property
    def _tableau(self) -> runge_kutta.Tableau:
        return runge_kutta.TABLEAUS[max(1, self.order - 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEIS(AdamsBashforth):
    """tAB-DEIS. See the module."""

    highest: ClassVar[int] = 3

    def position(self, level: Level) -> float:
        return level.t

    def quadrature(self, schedule: Schedule, levels: list[Level]) -> tuple[Any, Any]:
        lambdas = np.array([level.lambda_t for level in levels])
        abscissae, weights = exponential.GAUSS
        half = 0.5 * np.diff(lambdas)[:, None]
        points = lambdas[:-1, None] + half * (1 + abscissae)
        return -np.exp(-points) * half * weights, schedule.times(points.ravel()).reshape(points.shape)

    def stages(self, schedule: Schedule, levels: list[Level]) -> list[list[Level]]:
        return dpm_solver.inside(schedule, levels, max(1, self.order - 1))

    def single(
        self, tape: Tape, x: Vector, t: Level, s: Level, inside: list[Level], first: tuple[Vector, Vector]
    ) -> Vector:
        return exponential.single_step(tape, "noise", x, t, s, inside, Node(t.lambda_t, first[1]))
