r"""Predictor–corrector sampling.

At each step, first n moves of Langevin dynamics at the level t, then the predictor from t to s (the order of the
original code: the last operation is the predictor's, so that its mean is the denoised result; the paper's algorithm
1 corrects after predicting, which is the same chain shifted by half a step). A move is

    x ← x + h score(x, t) + √(2h) z

    langevin             h = 2 (α_t/α_s)² (r ‖z‖ / ‖score‖)²        r = snr
    annealed_langevin    h = 2 (α_t/α_s)² (r σ_t)²

(α_t/α_s)² is 1 − β_i of the discrete VP process and 1 for VE, so one rule serves every affine process, sub-VP too.
Norms are per sample, and ‖z‖ is its root-mean-square √D: neither depends on the rest of the batch. In very low
dimension ‖score‖ of one sample can come close to 0 and the step grows without bound: the rule is made for images.
The original code takes the means of both norms over the batch, which `batch_norms` gives: samples then depend on the
batch that they are in.

A move with a step that does not shrink with the grid leaves a bias of its own (on a Gaussian, of variance 1/(1 −
r²)): with a corrector a run has no order.

Without predictor ("none") the moves do all the work, as in NCSN: x stays, and they are made at the level s, so that
the last ones are at t_min and leave a state of that level; `last="denoise"` then gives the denoised result. x_T is
a draw of the level T and needs none there.

Source: Song et al. 2021, appendix G (algorithms 2–5); Song & Ermon 2019 for annealed Langevin dynamics.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import Checks, UserError
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.samplers.ddim import Ancestral
from score_sde.samplers.euler_maruyama import EulerMaruyama
from score_sde.samplers.linear import LinearSolver, Start
from score_sde.samplers.linear import Row as PredictorRow
from score_sde.samplers.reverse_diffusion import ReverseDiffusion
from score_sde.samplers.schedule import Schedule
from score_sde.sde import Process
from score_sde.typing import Condition, Data, Keys

PREDICTORS: dict[str, LinearSolver | None] = {
    "euler_maruyama": EulerMaruyama(),
    "reverse_diffusion": ReverseDiffusion(),
    "ancestral": Ancestral(),
    "probability_flow": EulerMaruyama(eta=0.0),
    "none": None,
}
MOST_MOVES = 1000
CORRECTORS = ("langevin", "annealed_langevin", "none")


class Row(NamedTuple):
    """t; the time of the moves, σ there; (α_t/α_s)²; the step's number; and the predictor's row, None without one."""

    t: Any
    at: Any
    sigma: Any
    scale: Any
    number: Any
    predictor: PredictorRow | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    """A predictor with `corrector_steps` moves of signal-to-noise ratio `snr` before it. See the module."""

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    corrector_steps: int = 1
    snr: float = 0.16
    batch_norms: bool = False

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("predictor", self.predictor, PREDICTORS)
            check.name("corrector", self.corrector, CORRECTORS)
            fits = 1 <= self.corrector_steps <= MOST_MOVES
            check.that(fits, f"corrector_steps must lie in [1, {MOST_MOVES}], not {self.corrector_steps}")
            check.that(self.snr > 0, f"snr must be positive, not {self.snr}")
            idle = self.predictor == self.corrector == "none"
            check.that(not idle, "predictor and corrector are both 'none': nothing would be done")

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        predictor = PREDICTORS[self.predictor]
        if predictor is not None:
            predictor.check_process(sde)
        if self._moves and sde.ends_in_noise:
            raise UserError(
                "a corrector needs alpha > 0 at T, not a process that ends in pure noise; use corrector none"
            )

    @property
    def _moves(self) -> int:
        return 0 if self.corrector == "none" else self.corrector_steps

    @property
    def stochastic(self) -> bool:
        predictor = PREDICTORS[self.predictor]
        return self._moves > 0 or (predictor is not None and predictor.stochastic)

    @property
    def convergence(self) -> float | None:
        return None if self._moves else 1

    @property
    def evaluations_per_step(self) -> int:
        return self._moves + (self.predictor != "none")

    def plan(self, sde: Any, grid: Grid) -> Plan:
        levels = Schedule.of(sde).at(grid)
        column = lambda name: np.array([getattr(level, name) for level in levels])
        alpha, predictor = column("alpha"), PREDICTORS[self.predictor]
        inner = None if predictor is None else predictor.plan(sde, grid)
        steps, moves = len(grid) - 1, slice(1, None) if predictor is None else slice(0, -1)
        row = Row(
            t=column("t")[:-1],
            at=column("t")[moves],
            sigma=column("sigma")[moves],
            scale=(alpha[:-1] / alpha[1:]) ** 2,
            number=np.arange(steps, dtype=np.int32),
            predictor=None if inner is None else jax.tree.map(lambda leaf: leaf[:steps], inner.rows),
        )
        return Plan.of(row, grid, None if inner is None else inner.start)

    def init(self, start: Start | None, x: Data, keys: Keys) -> Carry:
        predictor = PREDICTORS[self.predictor]
        if predictor is None or start is None:
            return super().init(start, x, keys)
        return predictor.init(start, x, keys)

    def step(self, denoiser: Denoiser, carry: Carry, row: Row, keys: Keys, condition: Condition = None) -> Carry:
        # Draws of the predictor have numbers of their own, under the keys that it has when it is alone.
        x, mean, predictor = carry.x, carry.mean, PREDICTORS[self.predictor]
        if self._moves:
            keys_of_step = rng.child(rng.child(keys, 2**31 - 1), row.number)
            move = lambda i, state: self._move(denoiser, state[0], row, rng.child(keys_of_step, i), condition)
            x, mean = jax.lax.fori_loop(0, self._moves, move, (x, mean))
        carry = carry._replace(x=x, evaluations=carry.evaluations + self._moves)
        if predictor is None or row.predictor is None:
            return carry._replace(mean=mean)
        return predictor.step(denoiser, carry, row.predictor, keys, condition)

    def _move(self, denoiser: Denoiser, x: Data, row: Row, keys: Keys, condition: Condition) -> tuple[Data, Data]:
        """x and its mean after one move."""
        score = denoiser.score(x, row.at * jnp.ones(len(x), x.dtype), condition)
        noise = rng.normal(keys, x.shape[1:], x.dtype)
        axes = tuple(range(1, x.ndim))
        norm = lambda value: jnp.sqrt(jnp.sum(value**2, axis=axes, keepdims=True))
        if self.corrector == "annealed_langevin":
            ratio = row.sigma
        elif self.batch_norms:
            ratio = jnp.mean(norm(noise)) / jnp.mean(norm(score))
        else:
            ratio = 1 / jnp.sqrt(jnp.mean(score**2, axis=axes, keepdims=True))
        size = 2 * row.scale * (self.snr * ratio) ** 2
        mean = x + size * score
        return mean + jnp.sqrt(2 * size) * noise, mean
