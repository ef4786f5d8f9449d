r"""Euler–Maruyama on the reverse-time SDE with stochasticity η.

    x_s = x_t − (t − s) [f x_t − ½ (1 + η²) g² score] + η g √(t − s) z,   z ~ N(0, I)

η = 1 is Song et al.'s predictor; η = 0 Euler's method on the probability-flow ODE. Source: Song et al. 2021.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde import rng
from score_sde.errors import UserError
from score_sde.samplers.base import Carry, Solver, advance
from score_sde.sde import Process, expand, reverse
from score_sde.typing import Keys, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Solver):
    """Euler–Maruyama with stochasticity eta ≥ 0. See the module."""

    order: ClassVar[int] = 1

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise UserError(f"eta must be at least 0, not {self.eta}")

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if sde.ends_in_noise:
            raise UserError("Euler-Maruyama needs f and g, which are infinite where the process ends in pure noise")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        x_t = carry.x
        drift, diffusion = reverse(self.denoiser.sde, x_t, t, self.denoiser.score(x_t, t), self.eta)
        mean = x_t - expand(t - s, x_t) * drift
        noise = rng.normal(key, x_t.shape[1:], x_t.dtype)
        return advance(carry, mean + diffusion * jnp.sqrt(expand(t - s, x_t)) * noise, mean, 1)
