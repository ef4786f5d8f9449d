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
Two solvers with equal numbers of registers and noises share one compiled program, whatever their steps. The matrices
can also be read without running anything: `verify` takes the exact law of a solver's output from them.
"""

import abc
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import SDE
from score_sde.typing import Condition, Data, Keys, Time

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
    t: float
    point: list[dict[int, float]]  # by component of the state
    state: list[int]  # the nodes that it makes: of the state, and of what the denoiser says
    outputs: list[int]


class _Stored(NamedTuple):
    node: int
    terms: dict[int, float]
    boundary: int  # after which evaluation it is computed


class BaseTape:
    """Records what a solver does with a state of one or more `components` and the `outputs` of a denoiser.

    Nodes are numbered things of a component's shape; the first ones are the state at the start.
    """

    def __init__(self, components: int, outputs: int) -> None:
        self.components, self.outputs = components, outputs
        self.evaluations: list[_Evaluation] = []
        self.stored: list[_Stored] = []
        self.noises: dict[int, int] = {}  # node -> number of the draw
        self._nodes = components

    def record(self, point: list[Vector], t: float) -> list[Vector]:
        """The outputs at a point. Its vectors stand for the evaluated state from now on."""
        state = [self._node() for _ in point]
        outputs = [self._node() for _ in range(self.outputs)]
        self.evaluations.append(_Evaluation(t, [dict(part.terms) for part in point], state, outputs))
        for part, node in zip(point, state, strict=True):
            part.terms = {node: 1.0}
        return [Vector({node: 1.0}) for node in outputs]

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


class Tape(BaseTape):
    """Of a solver of affine processes."""

    def __init__(self) -> None:
        super().__init__(components=1, outputs=2)

    @property
    def start(self) -> Vector:
        """x at the first time."""
        return Vector({0: 1.0})

    def evaluate(self, x: Vector, level: Level) -> tuple[Vector, Vector]:
        """(D, ε̂) at x and the level, by one evaluation. x stands for the evaluated state from now on."""
        data, noise = self.record([x], level.t)
        return data, noise


class Row(NamedTuple):
    """What is done with one evaluation; arrays with a leading axis of evaluations in a plan.

    t: its time. matrix: `(registers, registers + outputs + noises)`, on (registers, outputs, noises). noise: the number
    of each draw, `NO_NOISE` where there is none.
    """

    t: Any
    matrix: Any
    noise: Any


class Start(NamedTuple):
    """From the first state to the registers: matrix `(registers, components + noises)`, and the draws' numbers."""

    matrix: Any
    noise: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapedSolver(Solver):
    """Abstract: a solver that is written on a tape. The registers are the state's parts, the mean's, and the rest."""

    @abc.abstractmethod
    def parts(self, x: Data) -> list[Data]:
        """The components of a state."""

    @abc.abstractmethod
    def whole(self, parts: list[Data]) -> Data:
        """The state of these components."""

    @abc.abstractmethod
    def outputs(self, denoiser: Any, x: Data, t: Time, condition: Condition) -> list[Data]:
        """What the denoiser says, by one evaluation."""

    def init(self, start: Start, x: Data, keys: Keys) -> Carry:
        parts = self.parts(x)
        noises = [_draw(keys, start.noise[i], parts[0]) for i in range(len(start.noise))]
        registers = _product(start.matrix, [*parts, *noises])
        return self._carry(registers, len(parts), jnp.zeros(len(x), jnp.int32), jnp.zeros(len(x), bool))

    def step(self, denoiser: Any, carry: Carry, row: Row, keys: Keys, condition: Condition = None) -> Carry:
        parts = self.parts(carry.x)
        outputs = self.outputs(denoiser, carry.x, row.t * jnp.ones(len(carry.x), carry.x.dtype), condition)
        noises = [_draw(keys, row.noise[i], parts[0]) for i in range(len(row.noise))]
        columns = [*parts, *self.parts(carry.mean), *carry.memory, *outputs, *noises]
        return self._carry(_product(row.matrix, columns), len(parts), carry.evaluations + 1, carry.failed)

    def _carry(self, registers: list[Data], parts: int, evaluations: jax.Array, failed: jax.Array) -> Carry:
        x, mean = self.whole(registers[:parts]), self.whole(registers[parts : 2 * parts])
        return Carry(x, mean, evaluations, failed, tuple(registers[2 * parts :]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(TapedSolver):
    """Abstract: a solver of affine processes that is written on a tape."""

    @abc.abstractmethod
    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        """Records the way along `levels` from `tape.start`. Returns x at the last one, and x without its last noise."""

    def plan(self, sde: SDE, grid: Grid) -> Plan:
        tape, schedule = Tape(), Schedule.of(sde)
        x, mean = self.solve(tape, schedule, schedule.at(grid))
        rows, start = assemble(tape, [x], [mean])
        return Plan.of(rows, grid, start)

    def parts(self, x: Data) -> list[Data]:
        return [x]

    def whole(self, parts: list[Data]) -> Data:
        return parts[0]

    def outputs(self, denoiser: Denoiser, x: Data, t: Time, condition: Condition) -> list[Data]:
        return list(denoiser.data_and_noise(x, t, condition))


def _product(matrix: jax.Array, columns: list[Data]) -> list[Data]:
    """Sums of products, which XLA fuses, and not a matrix product, which accelerators round to bfloat16 or TF32."""
    return [sum(matrix[i, j] * column for j, column in enumerate(columns)) for i in range(matrix.shape[0])]  # type: ignore[misc]


def _draw(keys: Keys, number: jax.Array, like: Data) -> Data:
    """The noise of that number, zeros for `NO_NOISE`, at no cost then."""
    draw = lambda: rng.normal(rng.child(keys, number), like.shape[1:], like.dtype)
    return jax.lax.cond(number >= 0, draw, lambda: jnp.zeros_like(like))


class _Layout(NamedTuple):
    """Where everything is. b counts the boundaries: b lies after evaluation b, and −1 before the first.

    kept: at b, the nodes that are used at a later one, each with its register after those of the state. drawn: at b.
    """

    kept: dict[int, dict[int, int]]
    drawn: dict[int, list[int]]
    registers: int
    noises: int


def assemble(tape: BaseTape, x: list[Vector], mean: list[Vector]) -> tuple[Row, Start]:
    """The rows, in float64, that make the first registers `x` and the next ones `mean` in the end.

    A node lives in a register from the boundary at which it comes to be until the last one at which it is used. The
    first registers are always the state that is evaluated next.
    """
    results, parts, count = [*x, *mean], tape.components, len(tape.evaluations)
    layout = _layout(tape, results)
    stored = {each.node: each for each in tape.stored}

    def expression(terms: dict[int, float], boundary: int, columns: dict[int, int], width: int) -> np.ndarray:
        row = np.zeros(width)
        for node, factor in terms.items():
            if factor and node in stored and stored[node].boundary == boundary:
                row += factor * expression(stored[node].terms, boundary, columns, width)
            elif factor:
                row[columns[node]] += factor
        return row

    matrices, numbers = [], []
    for boundary in range(-1, count):
        columns, width = _columns(tape, layout, boundary)
        last = boundary == count - 1
        state = [each.terms for each in results] if last else tape.evaluations[boundary + 1].point
        matrix = np.zeros((layout.registers, width))
        for row, terms in enumerate(state):
            matrix[row] = expression(terms, boundary, columns, width)
        for node, register in layout.kept[boundary].items():
            matrix[parts + register] = expression({node: 1.0}, boundary, columns, width)
        matrices.append(matrix)
        draws = [tape.noises[node] for node in layout.drawn[boundary]]
        numbers.append(np.array(draws + [NO_NOISE] * (layout.noises - len(draws)), np.int32))
    times = np.array([evaluation.t for evaluation in tape.evaluations])
    return Row(times, np.stack(matrices[1:]), np.stack(numbers[1:])), Start(matrices[0], numbers[0])


def _columns(tape: BaseTape, layout: _Layout, boundary: int) -> tuple[dict[int, int], int]:
    """The column of every node that is at hand at a boundary, and their number."""
    parts = tape.components
    if boundary < 0:
        width, columns = parts + layout.noises, {part: part for part in range(parts)}
    else:
        width = layout.registers + tape.outputs + layout.noises
        columns = {node: parts + register for node, register in layout.kept[boundary - 1].items()}
        evaluation = tape.evaluations[boundary]
        columns |= {node: part for part, node in enumerate(evaluation.state)}
        columns |= {node: layout.registers + i for i, node in enumerate(evaluation.outputs)}
    columns |= {node: width - layout.noises + i for i, node in enumerate(layout.drawn[boundary])}
    return columns, width


def _layout(tape: BaseTape, results: list[Vector]) -> _Layout:
    count, parts = len(tape.evaluations), tape.components
    used: dict[int, list[dict[int, float]]] = {b: [] for b in range(-1, count)}
    born = dict.fromkeys(range(parts), -1)
    for number, evaluation in enumerate(tape.evaluations):
        used[number - 1] += evaluation.point
        born |= dict.fromkeys((*evaluation.state, *evaluation.outputs), number)
    for each in tape.stored:
        used[each.boundary].append(each.terms)
        born[each.node] = each.boundary
    used[count - 1] += [each.terms for each in results]

    last_use: dict[int, int] = {}
    drawn: dict[int, list[int]] = {b: [] for b in used}
    for boundary, expressions in used.items():
        for node in sorted({node for terms in expressions for node, factor in terms.items() if factor}):
            last_use[node] = boundary
            if node in tape.noises and node not in born:  # drawn where it is used first
                born[node] = boundary
                drawn[boundary].append(node)
    kept = _allocate(born, last_use, count)
    registers = max(2 * parts, parts + max((1 + r for places in kept.values() for r in places.values()), default=0))
    if registers > MOST_REGISTERS:
        raise AssertionError(f"a solver needs {registers} registers: store() what it carries from step to step")
    return _Layout(kept, drawn, registers, max(map(len, drawn.values())))


def _allocate(born: dict[int, int], last_use: dict[int, int], count: int) -> dict[int, dict[int, int]]:
    """At each boundary the nodes that are used at a later one, each with its register after those of the state."""
    starting: dict[int, list[int]] = {b: [] for b in range(-1, count)}
    for node, boundary in born.items():
        if last_use.get(node, boundary) > boundary:
            starting[boundary].append(node)
    kept: dict[int, dict[int, int]] = {-2: {}}
    for boundary in range(-1, count):
        places = {node: register for node, register in kept[boundary - 1].items() if last_use[node] > boundary}
        free = itertools.filterfalse(set(places.values()).__contains__, itertools.count())
        for node in starting[boundary]:
            places[node] = next(free)
        kept[boundary] = places
    return kept
