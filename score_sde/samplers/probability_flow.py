r"""The probability-flow ODE, integrated with adaptive steps of its own for every sample.

    dx/dt = f x − ½ g² score(x, t) = dα/dt D + dσ/dt ε̂

For an augmented process it is the ODE of the whole state, see `augmented`. Between two times of the grid the error is
controlled by `rtol` and `atol`; the usual grid is one step, T to t_min.
Source: Song et al. 2021, sec. 4.3 and appendix D.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from score_sde.errors import Checks
from score_sde.samplers.base import Carry, Solver, advance
from score_sde.sde import Process, integrate
from score_sde.typing import Keys, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Solver):
    """Adaptive integration (Tsitouras 5(4)) of the probability-flow ODE. See the module."""

    order: ClassVar[int] = 5
    processes: ClassVar[type] = Process

    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.rtol > 0, f"rtol must be positive, not {self.rtol}")
            check.that(self.atol > 0, f"atol must be positive, not {self.atol}")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def evaluations_per_step(self) -> None:
        return None

    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        def vector_field(time, sample, _):
            batch, times = sample[None], jnp.asarray(time, sample.dtype)[None]
            return self.denoiser.velocity(batch, times)[0]

        solution = integrate(vector_field, carry.x, None, t[0], s[0], rtol=self.rtol, atol=self.atol)
        after = advance(carry, solution.y, solution.y, solution.evaluations)
        return after._replace(failed=carry.failed | solution.failed)
