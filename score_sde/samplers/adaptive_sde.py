r"""The reverse SDE with adaptive steps of its own for every sample ("gotta go fast").

With F(x, t) = f x − g² score, h the step and ΔW = W_t − W_{t−h} of one Brownian path,

    x′  = x − h F(x, t) + g(t) ΔW                                          Euler–Maruyama
    x″  = ½ (x′ + x − h F(x′, t − h) + g(t − h) ΔW)                        the stochastic improved Euler step
    E   = rms((x′ − x″)/δ),   δ = max(atol, rtol max(|x′|, |x′ before|))

A step with E ≤ 1 is taken, to x″; h is multiplied by safety · E^{−exponent}. The published algorithm draws new noise
for a step that is tried again: the noises that are kept are then those that lead to small errors, and the law of the
samples is wrong however small the tolerance. Here the path is fixed: it is queried (a virtual Brownian tree), and
what a shorter step finds on it is a part of what the longer one found. Steps are whole parts of the interval: see
`PARTS`. The mean of a step is x″ without ½ (g(t) + g(t − h)) ΔW.

x′ − x″ is ½ h (F(x′) − F(x)), of the size of h ΔW, so that a tolerance ε makes steps of h ~ ε^{2/3}; on one path the
improved Euler step is of strong order 1 where g does not depend on x. Hence an error ~ ε^{2/3} in each sample; of a
state of one or two values the error has a heavy tail besides, since ΔW is small there by chance.

Source: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021, algorithm 1; the
path: Kidger, "On Neural Differential Equations", 2021, sec. 5.5, by `diffrax`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import Checks, UserError
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.sde import Process
from score_sde.sde.brownian import BrownianPath
from score_sde.typing import Condition, Data, Keys

SAFETY, EXPONENT = 0.9, 0.9
PARTS = 2**20  # of the interval: steps are of whole ones, as fine as the path is
FIRST_STEP = 0.01  # of the interval, as in the paper


class Row(NamedTuple):
    """One time of the grid, the next, and the number of the step."""

    t: Any
    s: Any
    number: Any


class _State(NamedTuple):
    """Of one sample: where it is, in parts of the interval, the step to try, of the interval, and what was spent."""

    x: Float[Array, "*shape"]
    mean: Float[Array, "*shape"]
    before: Float[Array, "*shape"]
    left: Int[Array, ""]
    h: Float[Array, ""]
    attempts: Int[Array, ""]


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
        done = last.left == 0
        if_done = lambda x: jnp.where(done.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.nan)
        return Carry(if_done(last.x), if_done(last.mean), carry.evaluations + 2 * last.attempts, carry.failed | ~done)

    def _solve(
        self, denoiser: Denoiser, x: Data, t: Array, s: Array, key: Key[Array, ""], condition: Condition
    ) -> _State:
        path = BrownianPath(jnp.zeros_like(t), jnp.ones_like(t), x, key)  # of the interval, whose parts are exact in it
        sde, condition = denoiser.sde, jax.tree.map(lambda leaf: leaf[None], condition)

        def drift_and_diffusion(x: Array, t: Array) -> tuple[Array, Array]:
            g = sde.diffusion_coefficient(t)
            score = denoiser.score(x[None], t[None], condition)[0]
            return sde.drift_coefficient(t) * x - g**2 * score, g

        def attempt(state: _State) -> _State:
            # Whole parts of the interval, rounded down to a quarter of an octave: a rough path makes any difference
            # of rounding in a step's length a large one in the next error.
            octaves = jnp.floor(4 * jnp.log2(jnp.maximum(state.h * PARTS, 1))) / 4
            parts = jnp.clip(jnp.floor(2**octaves).astype(jnp.int32), 1, state.left)
            left = state.left - parts
            now, then, share = (count.astype(t.dtype) / PARTS for count in (state.left, left, parts))
            h, change = (t - s) * share, jnp.sqrt(t - s) * path.change(then, now)
            now, then = s + (t - s) * now, s + (t - s) * then
            drift, g = drift_and_diffusion(state.x, now)
            first = state.x - h * drift - g * change
            drift_then, g_then = drift_and_diffusion(first, then)
            mean = state.x - 0.5 * h * (drift + drift_then)
            second = mean - 0.5 * (g + g_then) * change
            scale = jnp.maximum(self.atol, self.rtol * jnp.maximum(jnp.abs(first), jnp.abs(state.before)))
            error = jnp.sqrt(jnp.mean(((first - second) / scale) ** 2))
            accept = error <= 1
            factor = SAFETY * jnp.maximum(error, 1e-6) ** -EXPONENT
            keep = lambda new, old: jnp.where(accept, new, old)
            return _State(
                keep(second, state.x),
                keep(mean, state.mean),
                keep(first, state.before),
                keep(left, state.left),
                jnp.where(jnp.isfinite(error), factor, 0.1) * (parts.astype(t.dtype) / PARTS),
                state.attempts + 1,
            )

        nothing = jnp.zeros((), jnp.int32)
        start = _State(x, x, x, jnp.asarray(PARTS, jnp.int32), jnp.full_like(t, FIRST_STEP), nothing)
        going = lambda state: (state.left > 0) & (state.attempts < self.max_attempts)
        return jax.lax.while_loop(going, attempt, start)
