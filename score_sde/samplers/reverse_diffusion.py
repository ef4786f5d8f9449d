r"""Reverse diffusion: the reverse-time SDE discretised as the forward process is.

With the exact forward transition x_t = a x_s + G z (a = α_t/α_s, G² its variance)

    x_s = (2 − a) x_t + G² score(x_t, t) + G z,   z ~ N(0, I)

For VP, a² = 1 − G² = 1 − β_i and this is eq. 46 of the paper; for VE, a = 1 and G² = σ_t² − σ_s². The exact
transition serves every affine process, sub-VP too. Source: Song et al. 2021, appendix E (eq. 46).
"""

import dataclasses
from typing import ClassVar

from score_sde import rng
from score_sde.samplers.base import Carry, Solver, advance
from score_sde.sde import expand
from score_sde.typing import Keys, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(Solver):
    """The reverse diffusion predictor. See the module."""

    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        x_t = carry.x
        scale, std = self.denoiser.sde.transition_coefficients(s, t)
        mean = expand(2 - scale, x_t) * x_t + expand(std**2, x_t) * self.denoiser.score(x_t, t)
        return advance(carry, mean + expand(std, x_t) * rng.normal(key, x_t.shape[1:], x_t.dtype), mean, 1)
