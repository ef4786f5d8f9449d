r"""Solvers that are linear in the state, the predictions and the noise; and the tape that they are written on.

Almost every sampler of a diffusion model — DDIM, DPM-Solver, Adams–Bashforth, UniPC, stochastic Runge–Kutta, Restart —
does the same thing over and over: it evaluates the denoiser at a linear combination of what it has, and combines again,

    D_k, ε̂_k = denoiser(p_k, t_k),      p_{k+1} = Σ of states, D_j, ε̂_j (j ≤ k) and noises z_j

with coefficients that depend on the levels alone. So a solver of this kind is written as its paper writes it, with
vectors that stand for what will be known later,

    for t, s in zip(levels, levels[1:]):
        data, noise = tape.evaluate(x, t)
        x = s.alpha * data + s.sigma * noise

and run once on the host, in float64, on a `Tape`. What the tape has recorded is compiled to one small matrix an
evaluation, over a handful of registers of the state's shape. The loop on the device

    D, ε̂ = denoiser(R_0, t_k);   R ← M_k (R, D, ε̂, z)

is the same program for all of them, with one network in it, whatever the solver, its order or its way of starting.
Two solvers with equal numbers of registers and noises share one compiled program, whatever their steps. The matrices can also be read without running anything: `verify` takes the exact
law of a solver's output from them.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import SDE
from score_sde.typing import Data, Keys

NO_NOISE = -1
MOST_REGISTERS = 16


class Vector:
    """A linear combination, in float64, of things of the state's shape that are known only when the solver runs."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, float]) -> None:
        self.terms = terms

    def __add__(self, other: "Vector") -> "Vector":
        terms = dict(self.terms)
        for node, factor in other.terms.items():
            terms[node] = terms.get(node, 0.0) + factor
        return Vector(terms)

    def __mul__(self, factor: float) -> "Vector":
        return Vector({node: factor * value for node, value in self.terms.items()}) if factor else Vector({})

    __rmul__ = __mul__

    def __sub__(self, other: "Vector") -> "Vector":
        return self + -1.0 * other

    def __truediv__(self, factor: float) -> "Vector":
        return self * (1 / factor)


def combine(factors: Any, vectors: list[Vector]) -> Vector:
    """Σ factor · vector."""
    total = Vector({})
    for factor, vector in zip(factors, vectors, strict=True):
        total = total + float(factor) * vector
    return total


class _Evaluation(NamedTuple):
    level: Level
    point: dict[int, float]
    state: int  # the nodes that it makes: the point, D and ε̂
    data: int
    noise: int


class _Stored(NamedTuple):
    node: int
    terms: dict[int, float]
    boundary: int  # after which evaluation it is computed


class Tape:
    """Records what a solver does. Nodes are numbered things of the state's shape; node 0 is the state at the start."""

    def __init__(self) -> None:
        self.evaluations: list[_Evaluation] = []
        self.stored: list[_Stored] = []
        self.noises: dict[int, int] = {}  # node -> number of the draw
        self._nodes = 1

    @property
    def start(self) -> Vector:
        """x at the first time."""
        return Vector({0: 1.0})

    def evaluate(self, x: Vector, level: Level) -> tuple[Vector, Vector]:
        """(D, ε̂) at x and the level, by one evaluation of the denoiser. x stands for the evaluated state from now on."""
        state, data, noise = self._node(), self._node(), self._node()
        self.evaluations.append(_Evaluation(level, dict(x.terms), state, data, noise))
        x.terms = {state: 1.0}
        return Vector({data: 1.0}), Vector({noise: 1.0})

    def store(self, x: Vector) -> None:
        """Has x computed now. Needed for what is carried on but never evaluated: else it were a sum over all steps."""
        node = self._node()
        self.stored.append(_Stored(node, dict(x.terms), len(self.evaluations) - 1))
        x.terms = {node: 1.0}

    def noise(self) -> Vector:
        """z ~ N(0, I), independent of all others."""
        node = self._node()
        self.noises[node] = len(self.noises)
        return Vector({node: 1.0})

    def _node(self) -> int:
        self._nodes += 1
        return self._nodes - 1


class Row(NamedTuple):
    """What is done with one evaluation; arrays with a leading axis of evaluations in a plan.

    t: its time. matrix: `(registers, registers + 2 + noises)`, on (registers, D, ε̂, noises). noise: the number of each
    draw, `NO_NOISE` where there is none.
    """

    t: Any
    matrix: Any
    noise: Any


class Start(NamedTuple):
    """From x at the first time to the registers: matrix `(registers, 1 + noises)`, and the numbers of the draws."""

    matrix: Any
    noise: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(Solver):
    """Abstract: a solver that is written on a tape."""

    @abc.abstractmethod
    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        """Records the way along `levels` from `tape.start`. Returns x at the last one, and x without its last noise."""

    def plan(self, sde: SDE, grid: Grid) -> Plan:
        tape, schedule = Tape(), Schedule.of(sde)
        x, mean = self.solve(tape, schedule, schedule.at(grid))
        rows, start = assemble(tape, x, mean)
        return Plan.of(rows, grid, start)

    def init(self, start: Start, x: Data, keys: Keys) -> Carry:
        noises = [_draw(keys, start.noise[i], x) for i in range(len(start.noise))]
        return _carry(_product(start.matrix, [x, *noises]), jnp.zeros(len(x), jnp.int32), jnp.zeros(len(x), bool))

    def step(self, denoiser: Denoiser, carry: Carry, row: Row, keys: Keys) -> Carry:
        registers = [carry.x, carry.mean, *carry.memory]
        data, noise = denoiser.data_and_noise(carry.x, row.t * jnp.ones(len(carry.x), carry.x.dtype))
        noises = [_draw(keys, row.noise[i], carry.x) for i in range(len(row.noise))]
        columns = [*registers, data, noise, *noises]
        return _carry(_product(row.matrix, columns), carry.evaluations + 1, carry.failed)


def _carry(registers: list[Data], evaluations: jax.Array, failed: jax.Array) -> Carry:
    x, mean, *rest = registers
    return Carry(x, mean, evaluations, failed, tuple(rest))


def _product(matrix: jax.Array, columns: list[Data]) -> list[Data]:
    """Sums of products, which XLA fuses, and not a matrix product, which accelerators round to bfloat16 or TF32."""
    return [sum(matrix[i, j] * column for j, column in enumerate(columns)) for i in range(matrix.shape[0])]  # type: ignore[misc]


def _draw(keys: Keys, number: jax.Array, like: Data) -> Data:
    """The noise of that number, zeros for `NO_NOISE`, at no cost then."""
    draw = lambda: rng.normal(rng.child(keys, number), like.shape[1:], like.dtype)
    return jax.lax.cond(number >= 0, draw, lambda: jnp.zeros_like(like))


def assemble(tape: Tape, x: Vector, mean: Vector) -> tuple[Row, Start]:
    """The rows, in float64, that make registers 0 and 1 `x` and `mean` in the end.

    A node lives in a register from the boundary (the time between two evaluations) at which it comes to be until the
    last boundary at which it is used. Register 0 is always the state that is evaluated next.
    """
    count = len(tape.evaluations)
    stored = {each.node: each for each in tape.stored}
    # What is computed at each boundary: b lies after evaluation b, and −1 before the first.
    wanted: dict[int, list[dict[int, float]]] = {b: [] for b in range(-1, count)}
    for number, evaluation in enumerate(tape.evaluations):
        wanted[number - 1].append(evaluation.point)
    for each in tape.stored:
        wanted[each.boundary].append(each.terms)
    wanted[count - 1] += [x.terms, mean.terms]

    born = {0: -1} | {each.node: each.boundary for each in tape.stored}
    for number, evaluation in enumerate(tape.evaluations):
        born |= dict.fromkeys((evaluation.state, evaluation.data, evaluation.noise), number)
    last_use: dict[int, int] = {}
    for boundary in range(-1, count):
        for terms in wanted[boundary]:
            for node, factor in terms.items():
                if factor:
                    last_use[node] = boundary
                    if node in tape.noises:
                        born.setdefault(node, boundary)  # drawn where it is used first

    drawn: dict[int, list[int]] = {b: [] for b in range(-1, count)}
    for node in tape.noises:
        if node in born:
            drawn[born[node]].append(node)
    noises = max(map(len, drawn.values()))
    kept = _allocate(born, last_use, count)
    registers = max(2, 1 + max((1 + r for places in kept.values() for r in places.values()), default=0))
    if registers > MOST_REGISTERS:
        raise AssertionError(f"a solver needs {registers} registers: store() what it carries from step to step")

    def expression(terms: dict[int, float], boundary: int, columns: dict[int, int], width: int) -> np.ndarray:
        row = np.zeros(width)
        for node, factor in terms.items():
            if not factor:
                continue
            if node in stored and stored[node].boundary == boundary:
                row += factor * expression(stored[node].terms, boundary, columns, width)
            else:
                row[columns[node]] += factor
        return row

    matrices, numbers = [], []
    for boundary in range(-1, count):
        first = boundary < 0
        width = 1 + noises if first else registers + 2 + noises
        columns = {0: 0} if first else {n: 1 + r for n, r in kept[boundary - 1].items()}
        if not first:
            evaluation = tape.evaluations[boundary]
            columns |= {evaluation.state: 0, evaluation.data: registers, evaluation.noise: registers + 1}
        columns |= {node: width - noises + i for i, node in enumerate(drawn[boundary])}
        matrix = np.zeros((registers, width))
        if boundary < count - 1:
            matrix[0] = expression(tape.evaluations[boundary + 1].point, boundary, columns, width)
            for node, register in kept[boundary].items():
                matrix[1 + register] = expression({node: 1.0}, boundary, columns, width)
        else:
            matrix[0] = expression(x.terms, boundary, columns, width)
            matrix[1] = expression(mean.terms, boundary, columns, width)
        matrices.append(matrix)
        draws = [tape.noises[node] for node in drawn[boundary]]
        numbers.append(np.array(draws + [NO_NOISE] * (noises - len(draws)), np.int32))
    times = np.array([evaluation.level.t for evaluation in tape.evaluations])
    return Row(times, np.stack(matrices[1:]), np.stack(numbers[1:])), Start(matrices[0], numbers[0])


def _allocate(born: dict[int, int], last_use: dict[int, int], count: int) -> dict[int, dict[int, int]]:
    """At each boundary the nodes that are used at a later one, each with its register (counted from the second)."""
    starting: dict[int, list[int]] = {b: [] for b in range(-1, count)}
    for node, boundary in born.items():
        if last_use.get(node, boundary) > boundary:
            starting[boundary].append(node)
    kept: dict[int, dict[int, int]] = {-2: {}}
    for boundary in range(-1, count):
        places = {node: r for node, r in kept[boundary - 1].items() if last_use[node] > boundary}
        free = (r for r in range(10**6) if r not in places.values())
        for node in starting[boundary]:
            register = next(free)
            places[node] = register
        kept[boundary] = places
    return kept
