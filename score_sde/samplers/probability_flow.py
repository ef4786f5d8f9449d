r"""The probability-flow ODE, integrated with adaptive steps of its own for every sample.

    dx/dt = f x − ½ g² score(x, t) = dα/dt D + dσ/dt ε̂             variable t
    dx/du = dx/dt dt/du,   u = log σ̄,   dt/du = 2 σ²/g²            variable log_sigma_bar

For an augmented process it is the ODE of the whole state, see `augmented`, in t. Between two times of the grid the
error is controlled by `rtol` and `atol`; the usual grid is one step, T to t_min. Methods: Tsitouras' and Dormand and
Prince's pairs of order 5, theirs of order 8, and Kvaerno's implicit one of order 5, all of `diffrax`. The implicit
one solves equations of the size of a sample at every stage, with the Jacobian of the network: for small states
alone. Of its evaluations one a stage is counted, and not those of Newton's iterations.

Source: Song et al. 2021, sec. 4.3 and appendix D.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from score_sde.errors import Checks, UserError
from score_sde.samplers.base import Carry, Grid, Plan, Solver
from score_sde.sde import IMPLICIT, METHODS, SDE, Process, integrate
from score_sde.typing import Condition, Keys

VARIABLES = ("t", "log_sigma_bar")
MOST_GROWTH = 2.0  # of a step; what there is of an error that would allow more is of rounding, in float32


class Row(NamedTuple):
    """One time of the grid and the next."""

    t: Any
    s: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Solver):
    """method: a row of `sde.integrate.METHODS`. variable: t or log_sigma_bar. See the module."""

    processes: ClassVar[type] = Process

    method: str = "tsit5"
    variable: str = "t"
    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("method", self.method, METHODS)
            check.name("variable", self.variable, VARIABLES)
            check.that(self.rtol > 0, f"rtol must be positive, not {self.rtol}")
            check.that(self.atol > 0, f"atol must be positive, not {self.atol}")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def convergence(self) -> None:
        return None

    @property
    def evaluations_per_step(self) -> None:
        return None

    @property
    def counts_evaluations(self) -> bool:
        return self.method not in IMPLICIT

    def check_process(self, sde: Process) -> None:
        super().check_process(sde)
        if self.variable == "t":
            return
        if not isinstance(sde, SDE):
            raise UserError(f"variable {self.variable!r} is for affine processes, not {sde.kind}; use 't'")
        if sde.ends_in_noise:
            raise UserError(f"{self.variable} is infinite at T, where the process ends in pure noise; use variable 't'")

    def plan(self, sde: Any, grid: Grid) -> Plan:
        return Plan.of(Row(np.asarray(grid[:-1]), np.asarray(grid[1:])), grid)

    def step(self, denoiser: Any, carry: Carry, row: Row, keys: Keys, condition: Condition = None) -> Carry:
        sde, in_time = denoiser.sde, self.variable == "t"

        def vector_field(variable, sample, condition):
            u = variable.astype(sample.dtype)[None]
            t = u if in_time else sde.time_of_log_snr(-2 * u)
            velocity = denoiser.velocity(sample[None], t, jax.tree.map(lambda leaf: leaf[None], condition))[0]
            return velocity if in_time else 2 * (sde.sigma(t) / sde.diffusion_coefficient(t))[0] ** 2 * velocity

        of = (lambda t: t) if in_time else (lambda t: -0.5 * sde.log_snr(t))
        options: Any = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "most_growth": MOST_GROWTH}
        solution = integrate(vector_field, carry.x, condition, of(row.t), of(row.s), **options)
        return Carry(solution.y, solution.y, carry.evaluations + solution.evaluations, carry.failed | solution.failed)
