r"""Exponential multistep methods in λ: DPM-Solver++ 2M and 3M, and their stochastic forms.

From t_n to t_{n+1}, with h = λ_{n+1} − λ_n, the polynomial through D_n, D_{n−1}, … in the place of D in the exact
step of `exponential`,

    1M   D_n: DDIM for η = 0, ancestral sampling for η = 1
    2M   a line: D_n + (D_n − D_{n−1})/(2r) with the whole step's weight, r = (λ_n − λ_{n−1})/h ("midpoint"), or
         integrated exactly ("taylor")
    3M   a parabola, integrated exactly

A run of order p needs p − 1 values to start with, each with an error of O(h^p): the first come from single steps of
order p − 1 (`dpm_solver`), or from the method itself with fewer values. `start="cheap"` takes 1M, 2M, … from the
first step on, as published codes do: the first step's error of O(h²) makes the run one of order 2. `last_order`
lowers the order of the last step, for runs of few steps. What order is left is `convergence`.

The published 3M takes for the second derivative of D the second divided difference, which is half of it; it is of
order 2 for that. `compat` gives that form, of DPM-Solver's own code, diffusers and k-diffusion, to reproduce their
numbers.

The stochastic forms are of weak order 2 from 2M on, and 1M of order 1: what the polynomial makes of the noise in
D_{n−1} is what the state's own noise, which D_n misses, would have made of it, to that order. η multiplies time in
k-diffusion, where its square is meant here: equal at 0 and 1.

Source: Lu et al., "DPM-Solver++", 2022, algorithm 2 and appendix; k-diffusion for 3M with noise.
"""

import dataclasses
import itertools
from typing import ClassVar

from score_sde.errors import Checks, UserError
from score_sde.samplers import dpm_solver, exponential
from score_sde.samplers.base import check_finite
from score_sde.samplers.exponential import Node
from score_sde.samplers.linear import LinearSolver, Tape, Vector, combine
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import Process

STARTS = ("exact", "cheap")


def start_order(order: int, known: int, start: str) -> int:
    """Of the single step that a method of that order begins with, 0 where `known` values are enough without.

    The error of such a step is O(h^order), which k values give by themselves for k ≥ order − 1.
    """
    return 0 if start == "cheap" or known >= order - 1 else order - 1


def lowered(order: float, start: str, last_order: int, first: int = 1) -> float:
    """The order of the whole run: a single step of order q leaves an error of O(h^{q+1}). first: q of a cheap start."""
    start_limit = first + 1 if start == "cheap" else order
    return min(order, start_limit, last_order + 1 if last_order else order)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multistep(LinearSolver):
    """Abstract: a method has a number of values. See the module.

    start: "exact" keeps the order, "cheap" does not. last_order: the highest order in the last step, 0 for no limit.
    """

    order: ClassVar[int]

    form: str = "midpoint"
    start: str = "exact"
    last_order: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("form", self.form, dpm_solver.FORMS)
            check.name("start", self.start, STARTS)
            check.that(0 <= self.last_order <= self.order, f"last_order must lie in [0, {self.order}]")

    @property
    def noise_level(self) -> float:
        """η."""
        return 0.0

    @property
    def curvature(self) -> float:
        """The share of the second difference of D that is used: all of it, but for `compat`."""
        return 1.0

    @property
    def stochastic(self) -> bool:
        return self.noise_level > 0

    @property
    def convergence(self) -> float:
        order = min(self.order, 2) if self.stochastic or self.curvature < 1 else self.order
        return lowered(order, self.start, self.last_order)

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if self.order > 1:
            check_finite(sde)

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = mean = tape.start
        nodes: list[Node] = []
        # A stochastic run of weak order 2 needs no better start than 1M, whose law is wrong by O(h²).
        order, eta = (min(self.order, 2) if self.stochastic else self.order), self.noise_level
        inside = dpm_solver.inside(schedule, levels[: self.order], max(1, order - 1))
        for n, (t, s) in enumerate(itertools.pairwise(levels)):
            nodes = [exponential.evaluate(tape, "data", x, t), *nodes][: self.order]
            if start_order(order, len(nodes), self.start):
                mean = exponential.single_step(tape, "data", x, t, s, inside[n], nodes[0])
            else:
                limit = self.last_order if self.last_order and n == len(levels) - 2 else self.order
                mean = self.advance(x, t, s, nodes[:limit])
            x = mean + exponential.spread(t, s, eta) * tape.noise() if eta else mean
        return x, mean

    def advance(self, x: Vector, t: Level, s: Level, nodes: list[Node]) -> Vector:
        """The mean at s, by as many values as there are nodes."""
        eta = self.noise_level
        if len(nodes) == 2 and self.form == "midpoint":
            r = (nodes[0].position - nodes[1].position) / (s.lambda_t - t.lambda_t)
            weight = exponential.whole("data", t, s, eta)
            data = combine([1 + 0.5 / r, -0.5 / r], [node.prediction for node in nodes])
            return exponential.decay("data", t, s, eta) * x + weight * data
        step = exponential.predict("data", x, t, s, nodes, eta)
        if self.curvature < 1 and len(nodes) == 3:
            step = self.curvature * step + (1 - self.curvature) * _tangent(x, t, s, nodes, eta)
        return step


def _tangent(x: Vector, t: Level, s: Level, nodes: list[Node], eta: float) -> Vector:
    """The step with the parabola's tangent at t in its place."""
    (a, first), (b, second), (c, third) = nodes
    slope = combine(
        [1 / (a - b) + 1 / (a - c), -(a - c) / ((a - b) * (b - c)), (a - b) / ((a - c) * (b - c))],
        [first, second, third],
    )
    ahead = Node(s.lambda_t, first + (s.lambda_t - a) * slope)
    return exponential.predict("data", x, t, s, [nodes[0], ahead], eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(Multistep):
    """DPM-Solver++ 2M. See the module."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP3M(Multistep):
    """DPM-Solver++ 3M. compat: the published form. See the module."""

    order: ClassVar[int] = 3

    compat: bool = False

    @property
    def curvature(self) -> float:
        return 0.5 if self.compat else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticMultistep(Multistep):
    """Abstract: the same of the reverse process with stochasticity eta ≥ 0."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eta >= 0:
            raise UserError(f"eta must be at least 0, not {self.eta}")

    @property
    def noise_level(self) -> float:
        return self.eta


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP1(StochasticMultistep):
    """SDE-DPM-Solver++ 1(η). See the module."""

    order: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP2M(StochasticMultistep):
    """SDE-DPM-Solver++ 2M(η). See the module."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP3M(StochasticMultistep):
    """SDE-DPM-Solver++ 3M(η). compat: the published form. See the module."""

    order: ClassVar[int] = 3

    compat: bool = False

    @property
    def curvature(self) -> float:
        return 0.5 if self.compat else 1.0
