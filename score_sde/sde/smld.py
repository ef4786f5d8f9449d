r"""NCSN's N noise scales (SMLD) as a variance-exploding process: the discrete twin of `ve`.

    σ_i = σ_min (σ_max/σ_min)^{i/(N−1)},   i = 0 … N − 1,   x_i = x_{i−1} + √(σ_i² − σ_{i−1}²) z

are the marginals and transitions of `ve` at t_i = i/(N − 1), so the process is that one, with steps of its own. The
original networks number the scales from the largest: step_label is N − 1 at t = 0 and 0 at t = 1.
Source: Song & Ermon 2019 and 2020; Song et al. 2021, appendix C.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.sde.base import Times
from score_sde.sde.geometric import Geometric


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMLD(Geometric):
    """Variance exploding with `scales` noise scales. See the module."""

    scales: int = 1000
    t_min: float = 0.0

    def check(self) -> None:
        self.check_sigmas()
        if not 2 <= self.scales <= 1_000_000:
            raise UserError(f"scales must lie in [2, 1e6], not {self.scales}")

    @property
    def step_times(self) -> Float[np.ndarray, "steps"]:
        return np.arange(self.scales) / (self.scales - 1)

    def step_label(self, t: Times) -> Times:
        """0 for the largest scale, N − 1 for the smallest."""
        return (self.scales - 1) * (1 - t)
