r"""DDIM(η): the exact Gaussian step given D, with a share η of the posterior's noise.

    G² = σ_t² − (α_t/α_s)² σ_s²                  (the variance of x_t given x_s)
    ν  = η σ_s G / σ_t                           (η = 1: the standard deviation of q(x_s | x_t, x_0))
    x_s = α_s D + √(σ_s² − ν²) ε̂ + ν z,   z ~ N(0, I)

η = 1 is ancestral sampling with the true posterior variance (DDPM's β̃, where Song et al. 2021 take β); η = 0 the
deterministic DDIM, which is Euler's method for the probability-flow ODE in σ̄ = σ/α.
Source: Song, Meng & Ermon 2021, eq. 12; Ho et al. 2020, eq. 6–7.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.samplers.base import Carry, Solver, advance
from score_sde.sde import expand
from score_sde.typing import Keys, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """DDIM with stochasticity 0 ≤ eta ≤ 1. See the module."""

    order: ClassVar[int] = 1

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie in [0, 1], not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        return _gaussian_step(self.denoiser, carry, t, s, key, self.eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """Ancestral sampling: DDIM with eta = 1. See the module."""

    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        return _gaussian_step(self.denoiser, carry, t, s, key, 1.0)


def _gaussian_step(denoiser: Denoiser, carry: Carry, t: Time, s: Time, key: Keys, eta: float) -> Carry:
    sde, x_t = denoiser.sde, carry.x
    x_0, epsilon = denoiser.data_and_noise(x_t, t)
    alpha_s, sigma_s = sde.alpha(s), sde.sigma(s)
    _, transition_std = sde.transition_coefficients(s, t)
    ratio = eta * transition_std / sde.sigma(t)  # ν / σ_s
    mean = expand(alpha_s, x_t) * x_0 + expand(sigma_s * jnp.sqrt(1 - ratio**2), x_t) * epsilon
    x_s = mean
    if eta > 0:
        x_s = mean + expand(sigma_s * ratio, x_t) * rng.normal(key, x_t.shape[1:], x_t.dtype)
    return advance(carry, x_s, mean, 1)
