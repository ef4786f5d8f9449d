r"""Training objectives: denoising score matching.

    L = E_{t, x_0, ε}  w(t) · mean_d (ε̂(x_t, t) − ε)²,   x_t = α_t x_0 + σ_t ε,   t ~ U(t_min, T)

The weight of the score-matching error is λ(t) = σ_t² w(t):

    weighting    w(t)         λ(t)
    sigma2       1            σ_t²      (DDPM's simple loss; Song et al. 2021, sec. 3.3)
    likelihood   g²/σ_t²      g²        (the evidence bound; Song et al., "Maximum likelihood training", 2021)
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import Checks
from score_sde.sde import SDE
from score_sde.typing import Condition, Data, Keys, PerSample, Time

WEIGHTINGS: dict[str, Callable[[SDE, Time], PerSample]] = {
    "sigma2": lambda sde, t: jnp.ones_like(t),
    "likelihood": lambda sde, t: (sde.diffusion_coefficient(t) / sde.sigma(t)) ** 2,
}


def uniform_time(sde: SDE, keys: Keys) -> Time:
    """t ~ U[t_min, T), one draw per key."""
    return sde.t_min + (sde.T - sde.t_min) * rng.uniform(keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Denoising score matching with a weighting, a row of `WEIGHTINGS`."""

    weighting: str = "sigma2"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("weighting", self.weighting, WEIGHTINGS)

    def __call__(self, denoiser: Denoiser, x_0: Data, condition: Condition, keys: Keys) -> PerSample:
        """The loss of each sample, `(batch,)`; one draw of t and ε per sample."""
        t = uniform_time(denoiser.sde, rng.child(keys, 0))
        noise = rng.normal(rng.child(keys, 1), x_0.shape[1:])
        mean, std = denoiser.sde.marginal(x_0, t)
        error = denoiser.epsilon(mean + std * noise, t, condition) - noise
        return WEIGHTINGS[self.weighting](denoiser.sde, t) * jnp.mean(error**2, axis=tuple(range(1, x_0.ndim)))
