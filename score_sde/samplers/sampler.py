"""A sampler: a solver with its options, a grid, a number of steps and a last-step rule."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.errors import Checks, UserError
from score_sde.samplers.base import LAST_STEPS, Grid, Plan, Samples, Solver, check_grid, run
from score_sde.samplers.grids import GRIDS, OWN_RHO, Span
from score_sde.sde import SDE, Process
from score_sde.typing import Condition, Data, Keys

ROUNDING = 1e-6  # of T: times that are closer are the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """grid: a row of `GRIDS`, over the whole of the process. rho: of the grids karras, edm and exponential, 0 for the
    grid's own: 7, 7 and 1.

    times: a grid of one's own, decreasing, instead; `steps` and `grid` say nothing then. last: see `samplers.base`.
    """

    solver: Solver = dataclasses.field(metadata={"setting": False})
    grid: str = "uniform"
    rho: float = 0.0
    steps: int = 100
    times: tuple[float, ...] = ()
    last: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("grid", self.grid, GRIDS)
            check.name("last-step rule", self.last, LAST_STEPS)
            check.that(1 <= self.steps <= 1_000_000, f"steps must lie in [1, 1000000], not {self.steps}")
            check.that(0 <= self.rho <= 1000, f"rho must lie in [0, 1000], not {self.rho}")

    def check_process(self, sde: Process) -> None:
        """Raises UserError where the solver or the grid cannot be used on the process."""
        self.solver.check_process(sde)
        self.times_of(sde)

    def times_of(self, sde: Process, start: float | None = None) -> Grid:
        """The grid. start: where it begins; unless given, at T, or lower where the grid does by itself.

        A grid that would begin below a given start has its first step from there to where it would.
        """
        at = sde.T if start is None else start
        if not sde.t_min < at <= sde.T:
            raise UserError(f"sampling must start in (t_min, T] = ({sde.t_min}, {sde.T}], not at {at}")
        if self.times:
            return self._own_times(sde, start)
        grid = self._times_between(sde, at, self.steps)
        if start is not None and grid[0] < at - ROUNDING * sde.T:
            rest = self._times_between(sde, at, self.steps - 1) if self.steps > 1 else grid[-1:]
            grid = np.concatenate([[at], rest])
        return check_grid(grid)

    def _times_between(self, sde: Process, start: float, steps: int) -> Grid:
        """The named grid with so many steps."""
        return GRIDS[self.grid](Span(sde, start, sde.t_min, steps, self.rho or OWN_RHO.get(self.grid, 1.0)))

    def _own_times(self, sde: Process, start: float | None) -> Grid:
        """`times`, those before `start` left out."""
        grid = check_grid(np.asarray(self.times))
        if grid[-1] < sde.t_min or grid[0] > sde.T:
            raise UserError(f"times must lie in [t_min, T] = [{sde.t_min}, {sde.T}]")
        if start is None or start == grid[0]:
            return grid
        if start > grid[0]:
            raise UserError(f"sampling is to start at {start}, and times begin at {grid[0]}, below it")
        return check_grid(np.concatenate([[start], grid[grid < start]]))

    def plan(self, sde: Process, start: float | None = None) -> Plan:
        """What a run is told, computed on the host; learned parameters of the process must be bound, and known."""
        return self.solver.plan(sde, self.times_of(sde, start))

    def noise(self, sde: Process, plan: Plan, keys: Keys, shape: tuple[int, ...]) -> Data:
        """States at the first time of the plan, one per key.

        A grid that begins below T begins with N(0, σ²) of its level, which lacks the data's part, of size α.
        """
        x_T = sde.prior_sample(rng.child(keys, 0), shape)
        if not isinstance(sde, SDE):
            return x_T
        sigma = sde.sigma(jnp.stack([jnp.asarray(plan.times[0], x_T.dtype), jnp.asarray(sde.T, x_T.dtype)]))
        return sigma[0] / sigma[1] * x_T

    def __call__(
        self,
        denoiser: Any,
        plan: Plan,
        keys: Keys,
        shape: tuple[int, ...],
        condition: Condition = None,
        *,
        frames: int = 0,
    ) -> Samples:
        """One sample of `shape` per key, of a denoiser of the solver's kind. Traceable; see `run` for frames."""
        return self.refine(denoiser, plan, self.noise(denoiser.sde, plan, keys, shape), keys, condition, frames=frames)

    def refine(
        self, denoiser: Any, plan: Plan, x: Data, keys: Keys, condition: Condition = None, *, frames: int = 0
    ) -> Samples:
        """From states x at the first time of the plan (image-to-image, refinement)."""
        return run(self.solver, denoiser, plan, x, rng.child(keys, 1), condition, last=self.last, frames=frames)
