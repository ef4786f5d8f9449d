r"""Predictor–corrector sampling.

At each step, first n Langevin moves at the level t, then the predictor from t to s (the order of the original
code: the last operation is the predictor's, so that its mean is the denoised result; the paper's algorithm 1
corrects after predicting, which is the same chain shifted by half a step):

    x ← x + h score(x, t) + √(2h) z,   h = 2 (α_t/α_s)² (r ‖z‖ / ‖score‖)²,   r = snr

(α_t/α_s)² is 1 − β_i of the discrete VP process and 1 for VE, so one rule serves every affine process. Norms are
per sample, and ‖z‖ is its root-mean-square √D: neither depends on the rest of the batch. In very low dimension
‖score‖ of one sample can come close to 0 and the step grows without bound: the rule is made for images.

Source: Song et al. 2021, appendix G (algorithms 2–5).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from score_sde import rng
from score_sde.errors import Checks
from score_sde.samplers.base import Carry, Solver
from score_sde.samplers.ddim import Ancestral
from score_sde.samplers.euler_maruyama import EulerMaruyama
from score_sde.samplers.reverse_diffusion import ReverseDiffusion
from score_sde.sde import Process, expand
from score_sde.typing import Data, Keys, Time

PREDICTORS: dict[str, type[Solver]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
}
CORRECTORS = ("langevin", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    """A predictor with `corrector_steps` Langevin moves of signal-to-noise ratio `snr` before it. See the module."""

    order: ClassVar[int] = 1

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    corrector_steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("predictor", self.predictor, PREDICTORS)
            check.name("corrector", self.corrector, CORRECTORS)
            check.that(self.corrector_steps >= 1, f"corrector_steps must be at least 1, not {self.corrector_steps}")
            check.that(self.snr > 0, f"snr must be positive, not {self.snr}")

    def check_process(self, sde: Process) -> None:
        PREDICTORS[self.predictor](denoiser=self.denoiser).check_process(sde)

    @property
    def _moves(self) -> int:
        return 0 if self.corrector == "none" else self.corrector_steps

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations_per_step(self) -> int:
        return 1 + self._moves

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        x, moves = carry.x, self._moves
        if moves:
            move = lambda i, x: self._langevin(x, t, s, rng.child(key, i))
            x = jax.lax.fori_loop(1, moves + 1, move, x)
        carry = carry._replace(x=x, evaluations=carry.evaluations + moves)
        predictor = PREDICTORS[self.predictor](denoiser=self.denoiser)
        return predictor.step(carry, t, s, key if not moves else rng.child(key, 0))

    def _langevin(self, x: Data, t: Time, s: Time, key: Keys) -> Data:
        score = self.denoiser.score(x, t)
        axes = tuple(range(1, x.ndim))
        mean_square = jnp.mean(score**2, axis=axes)
        scale, _ = self.denoiser.sde.transition_coefficients(s, t)
        size = expand(2 * scale**2 * self.snr**2 / mean_square, x)
        return x + size * score + jnp.sqrt(2 * size) * rng.normal(key, x.shape[1:], x.dtype)
