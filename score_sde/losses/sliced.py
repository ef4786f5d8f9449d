r"""Sliced score matching at every noise level: no denoising target, only the network's own divergence.

    L = E  w(t) σ_t²/D · ( |s(x_t, t)|² + 2 vᵀ (∂s/∂x) v ),   v = ±1 (Rademacher), E v vᵀ = I

Integration by parts makes it E w σ²/D |s − ∇log p_t|² and a constant: the same minimiser as denoising score matching,
at the cost of a product with the network's Jacobian (one forward-mode pass). The variance-reduced form, in which |s|²
is not projected.

Source: Song, Garg, Shi & Ermon, "Sliced Score Matching", 2019, eq. 8; Song et al. 2021, sec. 3.3.
"""

import dataclasses

import jax
import jax.numpy as jnp

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.losses.base import Loss, Objective
from score_sde.losses.weightings import Weighting
from score_sde.typing import Condition, Data, Keys, PerSample, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sliced(Objective):
    """Sliced score matching with `projections` directions v a sample. See the module."""

    projections: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.projections <= 1000:
            raise UserError(f"projections must lie in [1, 1000], not {self.projections}")

    def __call__(
        self,
        denoiser: Denoiser,
        weighting: Weighting,
        x_0: Data,
        condition: Condition,
        keys: Keys,
        t: Time,
        factor: PerSample,
    ) -> Loss:
        sde, shape = denoiser.sde, x_0.shape[1:]
        axes = tuple(range(1, x_0.ndim))
        mean, std = sde.marginal(x_0, t)
        x_t = mean + std * rng.normal(rng.child(keys, 0), shape)
        score, product = jax.linearize(lambda x: denoiser.score(x, t, condition), x_t)
        directions = [rng.rademacher(rng.child(keys, 1 + i), shape) for i in range(self.projections)]
        divergence = sum(jnp.sum(v * product(v), axis=axes) for v in directions) / self.projections
        error = (jnp.sum(score**2, axis=axes) + 2 * divergence) / x_0[0].size
        loss = weighting(sde, t) * sde.sigma(t) ** 2 * error
        return Loss(factor * loss, loss)
