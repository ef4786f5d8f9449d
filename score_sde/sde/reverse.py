r"""The reverse-time SDE with any stochasticity, and the probability-flow ODE, as one function.

For every η ≥ 0 the process run from T down to t_min

    dx = [f x − ½ (1 + η²) g² ∇log p_t(x)] dt + η g dw̄

has the marginals p_t of the forward process: η = 1 is Anderson's reverse SDE, η = 0 the probability-flow ODE.
dt is negative along the way. Source: Song et al. 2021, eq. 6 and 13; the family in η: Zhang & Chen 2023.
"""

from jaxtyping import Array

from score_sde.sde.base import SDE
from score_sde.typing import Data, Time


def reverse(sde: SDE, x_t: Data, t: Time, score: Data, eta: float) -> tuple[Data, Array]:
    """Drift `(batch, *shape)` and diffusion `(batch, 1, …)` of the reverse process at time t."""
    diffusion = sde.diffusion(x_t, t)
    drift = sde.drift(x_t, t) - 0.5 * (1 + eta**2) * diffusion**2 * score
    return drift, eta * diffusion
