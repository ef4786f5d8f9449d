r"""Runge–Kutta methods with fixed steps for the probability-flow ODE.

    variable         what is integrated
    t                dx/dt = α' D + σ' ε̂
    log_sigma_bar    dx/du = (α' D + σ' ε̂) dt/du,   u = log σ̄ = −λ,   du/dt = g²/(2σ²)
    sigma_bar        d(x/α)/dσ̄ = ε̂,   which for σ_t = t, α = 1 is the first (EDM)

A step of length h from u with slopes k_i = slope(u + c_i h, y + h Σ_j a_ij k_j) is y + h Σ_i b_i k_i:

    euler       order 1     heun     order 2, the trapezoid after an Euler step
    midpoint    order 2     kutta    order 3                      rk4    order 4

Source: Kutta 1901; for Heun in diffusion models Karras et al. 2022.
"""

import abc
import dataclasses
import itertools
from typing import ClassVar, NamedTuple

from score_sde.errors import Checks, UserError
from score_sde.samplers.linear import LinearSolver, Tape, Vector, combine
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import Process


class Tableau(NamedTuple):
    """a: the rows of the stages after the first. b: of the step."""

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def c(self) -> tuple[float, ...]:
        return (0.0, *map(sum, self.a))


EULER = Tableau(1, (), (1,))
MIDPOINT = Tableau(2, ((1 / 2,),), (0, 1))
HEUN = Tableau(2, ((1,),), (1 / 2, 1 / 2))
KUTTA = Tableau(3, ((1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6))
RK4 = Tableau(4, ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
TABLEAUS = {1: EULER, 2: HEUN, 3: KUTTA, 4: RK4}  # by order, to start methods of several steps with


class Variable(abc.ABC):
    """What an ODE is integrated in. y: what is integrated, as x times a number."""

    @abc.abstractmethod
    def of(self, level: Level) -> float:
        """The variable."""

    @abc.abstractmethod
    def levels(self, schedule: Schedule, values: list[float]) -> list[Level]:
        """Where it has these values."""

    def scale(self, level: Level) -> float:
        """x/y."""
        return 1.0

    @abc.abstractmethod
    def slope(self, level: Level, data: Vector, noise: Vector) -> Vector:
        """dy/d variable."""


class Time(Variable):
    def of(self, level: Level) -> float:
        return level.t

    def levels(self, schedule: Schedule, values: list[float]) -> list[Level]:
        return schedule.at(values)

    def slope(self, level: Level, data: Vector, noise: Vector) -> Vector:
        return level.alpha_derivative * data + level.sigma_derivative * noise


class LogSigmaBar(Variable):
    def of(self, level: Level) -> float:
        return -level.lambda_t

    def levels(self, schedule: Schedule, values: list[float]) -> list[Level]:
        return schedule.at_lambda([-value for value in values])

    def slope(self, level: Level, data: Vector, noise: Vector) -> Vector:
        dt = 2 * (level.sigma / level.g) ** 2
        return dt * level.alpha_derivative * data + dt * level.sigma_derivative * noise


class SigmaBar(Variable):
    def of(self, level: Level) -> float:
        return level.sigma_bar

    def levels(self, schedule: Schedule, values: list[float]) -> list[Level]:
        return schedule.at_sigma_bar(values)

    def scale(self, level: Level) -> float:
        return level.alpha

    def slope(self, level: Level, data: Vector, noise: Vector) -> Vector:
        return noise


VARIABLES: dict[str, Variable] = {"t": Time(), "log_sigma_bar": LogSigmaBar(), "sigma_bar": SigmaBar()}


def stages(schedule: Schedule, levels: list[Level], tableau: Tableau, variable: Variable) -> list[list[Level]]:
    """The levels of the stages of each step between successive levels."""
    wanted = []
    for t, s in itertools.pairwise(levels):
        u, h = variable.of(t), variable.of(s) - variable.of(t)
        wanted += [u + c * h for c in tableau.c if 0 < c < 1]
    inner = iter(variable.levels(schedule, wanted) if wanted else [])
    between = lambda t, s, c: next(inner) if 0 < c < 1 else (s if c else t)
    return [[between(t, s, c) for c in tableau.c] for t, s in itertools.pairwise(levels)]


def advance(
    tape: Tape,
    x: Vector,
    s: Level,
    inside: list[Level],
    tableau: Tableau,
    variable: Variable,
    first: tuple[Vector, Vector] | None = None,
) -> Vector:
    """x at s, from x at the first of the stages' levels. first: D and ε̂ there, where they are known."""
    t = inside[0]
    h = variable.of(s) - variable.of(t)
    data, noise = tape.evaluate(x, t) if first is None else first
    y, slopes = x / variable.scale(t), [variable.slope(t, data, noise)]
    for level, row in zip(inside[1:], tableau.a, strict=True):
        point = variable.scale(level) * (y + h * combine(row, slopes))
        slopes.append(variable.slope(level, *tape.evaluate(point, level)))
    return variable.scale(s) * (y + h * combine(tableau.b, slopes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungeKutta(LinearSolver):
    """Abstract: a method has a tableau. variable: a row of `VARIABLES`. See the module."""

    tableau: ClassVar[Tableau]

    variable: str = "t"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("variable", self.variable, VARIABLES)

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def convergence(self) -> float:
        return self.tableau.order

    @property
    def evaluations_per_step(self) -> int:
        return len(self.tableau.b)

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if sde.ends_in_noise and self.variable != "t":
            raise UserError(f"{self.variable} is infinite at T, where the process ends in pure noise; use variable 't'")

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x, variable = tape.start, VARIABLES[self.variable]
        for s, inside in zip(levels[1:], stages(schedule, levels, self.tableau, variable), strict=True):
            x = advance(tape, x, s, inside, self.tableau, variable)
        return x, x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(RungeKutta):
    """Euler's method."""

    tableau: ClassVar[Tableau] = EULER


@dataclasses.dataclass(frozen=True, kw_only=True)
class Midpoint(RungeKutta):
    """The explicit midpoint method."""

    tableau: ClassVar[Tableau] = MIDPOINT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(RungeKutta):
    """Heun's method."""

    tableau: ClassVar[Tableau] = HEUN


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungeKutta4(RungeKutta):
    """The classical method of order 4."""

    tableau: ClassVar[Tableau] = RK4
