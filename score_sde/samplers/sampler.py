"""A sampler: a solver with its options, a grid, a number of steps and a last-step rule."""

import dataclasses
from typing import Any

from score_sde import rng
from score_sde.errors import Checks
from score_sde.samplers.base import LAST_STEPS, Samples, Solver, check_grid, run
from score_sde.samplers.grids import GRIDS
from score_sde.sde import Process
from score_sde.typing import Keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """options: the solver's own fields. grid: a row of `GRIDS`. last: see `samplers.base`."""

    solver: type[Solver]
    options: dict[str, Any]
    grid: str = "uniform"
    steps: int = 100
    last: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("grid", self.grid, GRIDS)
            check.name("last-step rule", self.last, LAST_STEPS)
            check.that(1 <= self.steps <= 1_000_000, f"steps must lie in [1, 1000000], not {self.steps}")

    def check_process(self, sde: Process) -> None:
        """Raises UserError where the solver or the grid cannot be used on the process."""
        unused: Any = None
        self.solver(denoiser=unused, **self.options).check_process(sde)
        check_grid(GRIDS[self.grid](sde, self.steps))

    def __call__(self, denoiser: Any, keys: Keys, shape: tuple[int, ...]) -> Samples:
        """One sample of `shape` per key, of a denoiser of the solver's kind. Traceable."""
        solver = self.solver(denoiser=denoiser, **self.options)
        x_T = denoiser.sde.prior_sample(rng.child(keys, 0), shape)
        return run(solver, x_T, GRIDS[self.grid](denoiser.sde, self.steps), rng.child(keys, 1), last=self.last)
