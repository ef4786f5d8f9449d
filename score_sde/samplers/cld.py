r"""Solvers of the reverse process of critically damped Langevin diffusion.

From t to s = t − h, with A the drift matrix, g² = 2 Γ β and s_v the score of the velocity,

    dz = (A z − [0; g² s_v]) dt + [0; g] dw̄,   dt < 0

Euler–Maruyama, with stochasticity η as for the affine processes (η = 1 is the reverse SDE, η = 0 Euler on the ODE):

    z_s = z_t − h (A z_t − ½ (1 + η²) [0; g² s_v(z_t, t)]) + η g √h [0; ε]

The symmetric splitting sampler (SSCS) writes the same SDE, in time r = −t that runs with the sampler, as a sum

    d(x, v) = [−(β/M) v; β x − (Γ β/M) v] dr + [0; g] dw               A: an Ornstein–Uhlenbeck process, solved exactly
            + [0; g² (s_v(z, −r) + v/M)] dr                            S: zero in x, small where z is near equilibrium

and steps as A_{h/2} S_h A_{h/2}. A is the forward process with the velocity turned about, R = diag(1, −1):

    A_{h/2}: mean R Φ(h/2) R z,   covariance R Q(h/2) R                Φ, Q of `sde.cld`, with x_0 and v_0 known

S takes time from t to s with x held. The paper takes it by one Euler step from t, whose error of O(h²) a step makes the
sampler one of first order, although the splitting is of second. A midpoint step, of two evaluations, restores that:

    SSCS           v ← v + h g² (s_v + v/M)(x, v, t)                   order 1, 1 evaluation      (the paper's)
    SSCSMidpoint   the same with (x, v_{1/2}, t − h/2),                order 2, 2 evaluations     (not in the paper)
                   v_{1/2} = v + ½ h g² (s_v + v/M)(x, v, t)

The mean of a step is the state without the noise of its last draw. It makes a difference to the data in the splitting
samplers alone: the others draw noise of the velocity only, and the samples are positions.

Source: Dockhorn, Vahdat & Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", ICLR
2022, and its authors' code.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.augmented import AugmentedDenoiser
from score_sde.errors import UserError
from score_sde.samplers.base import Grid, Plan
from score_sde.samplers.linear import BaseTape, TapedSolver, Vector, assemble
from score_sde.samplers.schedule import on_host
from score_sde.sde.cld import CLD, State
from score_sde.typing import Condition, Data, Time


class Pair(NamedTuple):
    """A state: position and velocity."""

    x: Vector
    v: Vector


class Tape(BaseTape):
    """Of a solver of states (x, v)."""

    def __init__(self) -> None:
        super().__init__(components=2, outputs=1)

    @property
    def start(self) -> Pair:
        """The state at the first time."""
        return Pair(Vector({0: 1.0}), Vector({1: 1.0}))

    def evaluate(self, z: Pair, t: float) -> Vector:
        """s_v at z and t, by one evaluation of the denoiser. z stands for the evaluated state from now on."""
        (score,) = self.record([z.x, z.v], t)
        return score


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedSolver(TapedSolver):
    """Abstract: a solver whose state is (x, v)."""

    processes: ClassVar[type] = CLD

    @abc.abstractmethod
    def solve(self, tape: Tape, sde: CLD, grid: Grid) -> tuple[Pair, Pair]:
        """Records the way along the grid from `tape.start`. Returns the last state, and it without its last noise."""

    def plan(self, sde: CLD, grid: Grid) -> Plan:
        tape = Tape()
        z, mean = self.solve(tape, sde, grid)
        rows, start = assemble(tape, list(z), list(mean))
        return Plan.of(rows, grid, start)

    def parts(self, x: State) -> list[Data]:
        return jnp.split(x, 2, axis=-1)

    def whole(self, parts: list[Data]) -> State:
        return jnp.concatenate(parts, axis=-1)

    def outputs(self, denoiser: AugmentedDenoiser, x: State, t: Time, condition: Condition) -> list[Data]:
        return [denoiser.score(x, t, condition)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedEulerMaruyama(AugmentedSolver):
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

    def solve(self, tape: Tape, sde: CLD, grid: Grid) -> tuple[Pair, Pair]:
        z = mean = tape.start
        rate, friction, g_squared = sde.beta / sde.mass, sde.damping * sde.beta / sde.mass, _g_squared(sde)
        for h, t in zip(-np.diff(grid), grid, strict=False):
            score = tape.evaluate(z, t)
            push = 0.5 * (1 + self.eta**2) * g_squared * score
            mean = Pair(z.x - h * rate * z.v, z.v + h * (sde.beta * z.x + friction * z.v + push))
            noise = self.eta * math.sqrt(h * g_squared) * tape.noise() if self.eta else Vector({})
            z = Pair(mean.x, mean.v + noise)
        return z, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymmetricSplitting(AugmentedSolver):
    """Abstract: A_{h/2} S_h A_{h/2}. A sampler adds how it steps S."""

    @property
    def stochastic(self) -> bool:
        return True

    @abc.abstractmethod
    def push(self, tape: Tape, sde: CLD, z: Pair, t: float, s: float) -> Vector:
        """v after the score step S from t to s, x being held."""

    def solve(self, tape: Tape, sde: CLD, grid: Grid) -> tuple[Pair, Pair]:
        z = mean = tape.start
        for t, s, half in zip(grid, grid[1:], _halves(sde, grid), strict=False):
            mean, noise = _relax(tape, z, half)
            z = Pair(mean.x + noise.x, mean.v + noise.v)
            z = Pair(z.x, self.push(tape, sde, z, t, s))
            mean, noise = _relax(tape, z, half)
            z = Pair(mean.x + noise.x, mean.v + noise.v)
        return z, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSCS(SymmetricSplitting):
    """The symmetric splitting sampler with an Euler step of S, the paper's. See the module."""

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def push(self, tape: Tape, sde: CLD, z: Pair, t: float, s: float) -> Vector:
        return z.v + (t - s) * _force(tape, sde, z, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSCSMidpoint(SymmetricSplitting):
    """The symmetric splitting sampler with a midpoint step of S. See the module."""

    @property
    def convergence(self) -> float:
        return 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def push(self, tape: Tape, sde: CLD, z: Pair, t: float, s: float) -> Vector:
        force = _force(tape, sde, z, t)
        middle = Pair(z.x, z.v + 0.5 * (t - s) * force)
        return z.v + (t - s) * _force(tape, sde, middle, 0.5 * (t + s))


class _Half(NamedTuple):
    """A over half a step: R Φ R and R L, see the module."""

    mean: Any
    noise: Any


def _g_squared(sde: CLD) -> float:
    return 2 * sde.damping * sde.beta


def _force(tape: Tape, sde: CLD, z: Pair, t: float) -> Vector:
    """g² (s_v + v/M), what S adds to v per unit of time."""
    score = tape.evaluate(z, t)
    return _g_squared(sde) * (score + z.v / sde.mass)


def _relax(tape: Tape, z: Pair, half: _Half) -> tuple[Pair, Pair]:
    """Mean and noise of A over half a step."""
    (a, b), (c, d) = half.mean
    (l_xx, _), (l_xv, l_vv) = half.noise
    first, second = tape.noise(), tape.noise()
    return Pair(a * z.x + b * z.v, c * z.x + d * z.v), Pair(l_xx * first, l_xv * first + l_vv * second)


def _halves(sde: CLD, grid: Grid) -> list[_Half]:
    """Of each step of the grid: the forward transition of half its length of the state with v turned about."""

    @jax.jit
    def coefficients(duration: jax.Array) -> tuple[jax.Array, ...]:
        matrix = sde.transition_matrix(jnp.zeros_like(duration), duration)
        flat = (matrix[:, 0, 0], -matrix[:, 0, 1], -matrix[:, 1, 0], matrix[:, 1, 1])
        l_xx, l_xv, l_vv = sde.cholesky(duration, "z_0")
        return *flat, l_xx, -l_xv, -l_vv

    columns = np.stack(on_host(coefficients, -0.5 * np.diff(grid), 7), axis=1).tolist()
    return [_Half([row[:2], row[2:4]], [(row[4], 0.0), row[5:]]) for row in columns]
