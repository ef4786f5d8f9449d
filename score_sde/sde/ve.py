r"""Variance-exploding process with a geometric noise schedule (the continuous form of NCSN/SMLD).

    α_t = 1,   σ_t = σ_min (σ_max/σ_min)^t,   f = 0,   g² = 2 σ_t² log(σ_max/σ_min)

Source: Song et al. 2021, appendix C (eq. 30–31).
"""

import dataclasses

from score_sde.sde.geometric import Geometric


@dataclasses.dataclass(frozen=True, kw_only=True)
class VE(Geometric):
    """Variance exploding, geometric σ. See the module."""

    def check(self) -> None:
        self.check_sigmas()
