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
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.errors import UserError
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.sde.base import expand
from score_sde.sde.cld import CLD, State
from score_sde.typing import Data, Keys, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedSolver(Solver):
    """Abstract: a solver whose state is (x, v)."""

    processes: ClassVar[type] = CLD

    def plan(self, sde: CLD, grid: Grid) -> Plan:
        number = np.arange(len(grid) - 1, dtype=np.int32)
        return Plan.of(Row(np.asarray(grid[:-1]), np.asarray(grid[1:]), number), grid)

    def step(self, denoiser: AugmentedDenoiser, carry: Carry, row: "Row", keys: Keys) -> Carry:
        ones = jnp.ones(len(carry.x), carry.x.dtype)
        z, mean = self.one(denoiser, carry.x, row.t * ones, row.s * ones, rng.child(keys, row.number))
        return carry._replace(x=z, mean=mean, evaluations=carry.evaluations + (self.evaluations_per_step or 0))

    @abc.abstractmethod
    def one(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time, key: Keys) -> tuple[State, State]:
        """The state at s and its mean. key: of this step's draws, one per sample."""


class Row(NamedTuple):
    """One time of the grid, the next, and the number of the step."""

    t: Any
    s: Any
    number: Any


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

    def one(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time, key: Keys) -> tuple[State, State]:
        h = expand(t - s, z)
        drift, diffusion = denoiser.reverse(z, t, self.eta)
        mean = z - h * drift
        noise = rng.normal(key, denoiser.sde.data_of(z).shape[1:], z.dtype)
        return _push(mean, diffusion * jnp.sqrt(h) * noise), mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymmetricSplitting(AugmentedSolver):
    """Abstract: A_{h/2} S_h A_{h/2}. A sampler adds how it steps S."""

    @property
    def stochastic(self) -> bool:
        return True

    @abc.abstractmethod
    def change_of_velocity(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time) -> Data:
        """By the score step S from t to s, x being held."""

    def one(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time, key: Keys) -> tuple[State, State]:
        middle = 0.5 * (t + s)
        mean, noise = _relax(denoiser.sde, z, t, middle, rng.child(key, 0))
        z = mean + noise
        pushed = _push(z, self.change_of_velocity(denoiser, z, t, s))
        mean, noise = _relax(denoiser.sde, pushed, middle, s, rng.child(key, 1))
        return mean + noise, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSCS(SymmetricSplitting):
    """The symmetric splitting sampler with an Euler step of S, the paper's. See the module."""

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def change_of_velocity(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time) -> Data:
        return expand(t - s, z) * _force(denoiser, z, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSCSMidpoint(SymmetricSplitting):
    """The symmetric splitting sampler with a midpoint step of S. See the module."""

    @property
    def convergence(self) -> float:
        return 2

    @property
    def evaluations_per_step(self) -> int:
        return 2

    def change_of_velocity(self, denoiser: AugmentedDenoiser, z: State, t: Time, s: Time) -> Data:
        h = expand(t - s, z)
        return h * _force(denoiser, _push(z, 0.5 * h * _force(denoiser, z, t)), 0.5 * (t + s))


def _force(denoiser: AugmentedDenoiser, z: State, t: Time) -> Data:
    """g² (s_v + v/M), what S adds to v per unit of time."""
    g = expand(denoiser.sde.diffusion_coefficient(t), z)
    return g**2 * (denoiser.score(z, t) + denoiser.sde.velocity_of(z) / denoiser.sde.mass)


def _relax(sde: CLD, z: State, t: Time, s: Time, key: Keys) -> tuple[State, State]:
    """Mean and noise of A from t to s < t: the forward transition over t − s of the state with v turned about."""
    mean, cholesky = sde.transition(_turn(z), s, t)
    return _turn(mean), _turn(cholesky.times(rng.normal(key, z.shape[1:], z.dtype)))


def _push(z: State, change: Data) -> State:
    """z with `change` added to its velocity."""
    return z + jnp.concatenate([jnp.zeros_like(change), change], axis=-1)


def _turn(z: State) -> State:
    """R z: the velocity turned about."""
    x, v = jnp.split(z, 2, axis=-1)
    return jnp.concatenate([x, -v], axis=-1)
