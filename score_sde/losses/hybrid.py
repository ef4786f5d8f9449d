r"""Score matching of an augmented process: critically damped Langevin diffusion.

    L = E_{t, x_0, v_0, ε}  w(t) · mean_d (ε̂_v(z_t, t) − (σ_t/l) ε_v)²,   z_t = mean + L ε,   v_0 ~ N(0, γ M I)

    given   mean and L = [[l_xx, 0], [l_xv, l]] of                              l
    x_0     z_t given x_0, v_0 integrated out: hybrid score matching            σ_t
    z_0     z_t given z_0 = (x_0, v_0): denoising score matching                less than σ_t

with σ_t the l_vv of the first row, and w a weighting: of the score's error, λ = w σ². The target −ε_v/l of s_v has the
score as its mean in both rows, so they differ by a constant, and by how much the target varies. "sigma2" is the paper's
reweighted objective λ = ℓ_t⁻² and "likelihood" its bound's λ = g², up to a factor. (The paper's denoising row has
λ = l² in place of σ² with the first.)

Source: Dockhorn, Vahdat & Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", ICLR
2022, sec. 3 and appendix B.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.errors import Checks
from score_sde.losses.base import Loss, Objective
from score_sde.losses.weightings import Weighting
from score_sde.sde import CLD, expand
from score_sde.sde.cld import GIVEN
from score_sde.typing import Condition, Data, Keys, PerSample, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid(Objective):
    """Score matching in the velocity. given: what the law of z_t is conditioned on, "x_0" or "z_0". See the module."""

    processes: ClassVar[type] = CLD

    given: str = "x_0"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("start", self.given, GIVEN)

    def __call__(
        self,
        denoiser: AugmentedDenoiser,
        weighting: Weighting,
        x_0: Data,
        condition: Condition,
        keys: Keys,
        t: Time,
        factor: PerSample,
    ) -> Loss:
        sde = denoiser.sde
        v_0 = jnp.zeros_like(x_0)
        if self.given == "z_0":
            v_0 = (sde.gamma * sde.mass) ** 0.5 * rng.normal(rng.child(keys, 1), x_0.shape[1:], x_0.dtype)
        mean, cholesky = sde.conditional_mean(x_0, v_0, t), sde.cholesky(t, self.given)
        noise = rng.normal(rng.child(keys, 0), mean.shape[1:], mean.dtype)
        target = expand(sde.sigma(t) / cholesky.l_vv, x_0) * sde.velocity_of(noise)
        error = denoiser.epsilon(mean + cholesky.times(noise), t, condition) - target
        loss = weighting(sde, t) * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))
        return Loss(factor * loss, loss)
