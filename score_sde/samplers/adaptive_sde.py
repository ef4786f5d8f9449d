r"""The reverse SDE with adaptive steps of its own for every sample ("gotta go fast").

With F(x, t) = f x − g² score, h the step and ΔW = W_t − W_{t−h} of one Brownian path,

    x′  = x − h F(x, t) + g(t) ΔW                                          Euler–Maruyama
    x″  = ½ (x′ + x − h F(x′, t − h) + g(t − h) ΔW)                        the stochastic improved Euler step
    E   = rms((x′ − x″)/δ),   δ = max(atol, rtol max(|x′|, |x′ before|))

A step with E ≤ 1 is taken, to x″; h is multiplied by safety · E^{−exponent}. The published algorithm draws new noise
for a step that is tried again: the noises that are kept are then those that lead to small errors, and the law of the
samples is wrong however small the tolerance. Here the path is fixed: it is queried (a virtual Brownian tree), and
what a shorter step finds on it is a part of what the longer one found.

Source: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021, algorithm 1; the
path: Kidger, "On Neural Differential Equations", 2021, sec. 5.5, by `diffrax`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import Checks, UserError
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.sde import Process
from score_sde.sde.brownian import FINEST, BrownianPath
from score_sde.typing import Condition, Data, Keys

SAFETY, EXPONENT = 0.9, 0.9
FIRST_STEP = 0.01  # of the interval, as in the paper


class Row(NamedTuple):
    """One time of the grid, the next, and the number of the step."""

    t: Any
    s: Any
    number: Any


class _State(NamedTuple):
    """Of one sample: where it is, the step to try, and what has been spent."""

    x: Float[Array, "*shape"]
    before: Float[Array, "*shape"]
    t: Float[Array, ""]
    h: Float[Array, ""]
    attempts: Int[Array, ""]
    done: Bool[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveSDE(Solver):
    """rtol, atol: of a step; max_attempts: at steps, after which a sample has failed. See the module."""

    rtol: float = 0.02
    atol: float = 0.004
    max_attempts: int = 10_000

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.rtol > 0, f"rtol must be positive, not {self.rtol}")
            check.that(self.atol > 0, f"atol must be positive, not {self.atol}")
            check.that(1 <= self.max_attempts <= 10**8, f"max_attempts must lie in [1, 1e8], not {self.max_attempts}")

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def convergence(self) -> None:
        return None

    @property
    def evaluations_per_step(self) -> None:
        return None

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if sde.ends_in_noise:
            raise UserError("this solver needs f and g, which are infinite where the process ends in pure noise")

    def plan(self, sde: Any, grid: Grid) -> Plan:
        number = np.arange(len(grid) - 1, dtype=np.int32)
        return Plan.of(Row(np.asarray(grid[:-1]), np.asarray(grid[1:]), number), grid)

    def step(self, denoiser: Denoiser, carry: Carry, row: Row, keys: Keys, condition: Condition = None) -> Carry:
        solve = jax.vmap(lambda x, key, condition: self._solve(denoiser, x, row.t, row.s, key, condition))
        last = solve(carry.x, rng.child(keys, row.number), condition)
        x = jnp.where(last.done.reshape(-1, *(1,) * (carry.x.ndim - 1)), last.x, jnp.nan)
        return Carry(x, x, carry.evaluations + 2 * last.attempts, carry.failed | ~last.done)

    def _solve(
        self, denoiser: Denoiser, x: Data, t: Array, s: Array, key: Key[Array, ""], condition: Condition
    ) -> _State:
        path = BrownianPath(s, t, x, key)
        sde, condition = denoiser.sde, jax.tree.map(lambda leaf: leaf[None], condition)

        def drift_and_diffusion(x: Array, t: Array) -> tuple[Array, Array]:
            g = sde.diffusion_coefficient(t)
            score = denoiser.score(x[None], t[None], condition)[0]
            return sde.drift_coefficient(t) * x - g**2 * score, g

        def attempt(state: _State) -> _State:
            next_t = jnp.maximum(state.t - state.h, s)
            last = state.t - state.h <= s + FINEST * (t - s)
            next_t = jnp.where(last, s, next_t)
            h, change = state.t - next_t, path.change(next_t, state.t)
            drift, g = drift_and_diffusion(state.x, state.t)
            first = state.x - h * drift - g * change
            drift, g = drift_and_diffusion(first, next_t)
            second = 0.5 * (first + state.x - h * drift - g * change)
            scale = jnp.maximum(self.atol, self.rtol * jnp.maximum(jnp.abs(first), jnp.abs(state.before)))
            error = jnp.sqrt(jnp.mean(((first - second) / scale) ** 2))
            accept = error <= 1
            factor = SAFETY * jnp.maximum(error, 1e-6) ** -EXPONENT
            keep = lambda new, old: jnp.where(accept, new, old)
            return _State(
                keep(second, state.x),
                keep(first, state.before),
                keep(next_t, state.t),
                jnp.where(jnp.isfinite(error), factor, 0.1) * h,
                state.attempts + 1,
                accept & last,
            )

        start = _State(x, x, t, FIRST_STEP * (t - s), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return jax.lax.while_loop(lambda state: ~state.done & (state.attempts < self.max_attempts), attempt, start)
