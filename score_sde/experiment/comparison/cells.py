"""The cells of a comparison: which sampler, with how many steps, and the command that makes one again.

A cell's steps are the most whose plan spends no more than its budget: the plan says exactly what a run will spend,
single steps to start with and `last="denoise"` included. Samplers that choose their steps themselves, and grids of
one's own (`times`), have no number of steps to choose: the first run at several tolerances, the others once.
"""

import dataclasses
import shlex
from typing import Any

from score_sde.errors import UserError
from score_sde.experiment.base import Experiment
from score_sde.samplers import SOLVERS, LinearSolver, Plan, Sampler, Solver
from score_sde.sde import SDE, Process
from score_sde.training.interrupt import StopRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """sampler: at the cell's settings. budget: of network evaluations. factor: on the tolerances. skipped: why."""

    name: str
    sampler: Sampler
    budget: int | None = None
    factor: float | None = None
    skipped: str = ""

    @property
    def at(self) -> str:
        """Which cell of the sampler's it is."""
        if self.budget is not None:
            return str(self.budget)
        return "its times" if self.factor is None else f"tol x {self.factor:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """All of them, as plain data."""
        rest = {field: getattr(self.sampler, field) for field in ("grid", "rho", "steps", "times", "last")}
        return {"solver": solver_name(self.sampler.solver), **dataclasses.asdict(self.sampler.solver), **rest}


def solver_name(solver: Solver) -> str:
    """Its row of `SOLVERS`."""
    return next(name for name, cls in SOLVERS.items() if cls is type(solver))


def usual_grid(process: Process) -> str:
    """The grid of samplers whose section names none: uniform in λ, where the process has a finite one at T.

    No other one is as good for every kind of solver on processes as unlike as VP and VE: docs/compare.md has figures.
    """
    return "log_snr" if isinstance(process, SDE) and not process.ends_in_noise else "uniform"


def samplers_of(experiment: Experiment) -> dict[str, Sampler]:
    """The samplers to compare, those whose section chooses no grid on the usual one of the process."""
    usual = usual_grid(experiment.sampling_sde)
    chosen = experiment.compared
    return chosen | {name: dataclasses.replace(chosen[name], grid=usual) for name in experiment.without_grid}


def all_cells(experiment: Experiment, stop: StopRequest) -> list[Cell]:
    """One sampler after the other, each from few evaluations to many. Raises Interrupted after a signal."""
    compare, sde = experiment.compare, experiment.sampling_sde
    cells = []
    for name, sampler in samplers_of(experiment).items():
        if sampler.solver.evaluations_per_step is None:
            cells += [_at_tolerance(name, sampler, each) for each in sorted(compare.tolerance_factors, reverse=True)]
        elif sampler.times:
            cells.append(Cell(name=name, sampler=sampler))
        else:
            cells += [at_budget(name, sampler, sde, budget, stop) for budget in sorted(compare.nfe)]
    return cells


def _at_tolerance(name: str, sampler: Sampler, factor: float) -> Cell:
    solver: Any = sampler.solver
    solver = dataclasses.replace(solver, rtol=factor * solver.rtol, atol=factor * solver.atol)
    return Cell(name=name, sampler=dataclasses.replace(sampler, solver=solver, steps=1), factor=factor)


def at_budget(name: str, sampler: Sampler, sde: Process, budget: int, stop: StopRequest) -> Cell:
    """With as many steps as the budget allows; skipped where it allows none.

    From the most that there could be it goes down by as many as what is spent too much comes to, and up again by one
    while that fits: what Restart spends does not rise with every step.
    """
    per_step = sampler.solver.evaluations_per_step
    assert per_step is not None

    def spent(steps: int) -> int:
        stop.check()
        at_steps = dataclasses.replace(sampler, steps=steps)
        return evaluations(at_steps, at_steps.plan(sde))

    steps = max(1, (budget - (sampler.last == "denoise")) // per_step)
    try:
        while (excess := spent(steps) - budget) > 0 and steps > 1:
            steps = max(1, steps - max(1, excess // per_step))
        if excess > 0:
            reason = f"one step takes {budget + excess} evaluations"
            return Cell(name=name, sampler=dataclasses.replace(sampler, steps=1), budget=budget, skipped=reason)
        while excess <= -per_step and (excess := spent(steps + 1) - budget) <= 0:
            steps += 1
    except UserError as error:
        at_steps = dataclasses.replace(sampler, steps=steps)
        return Cell(name=name, sampler=at_steps, budget=budget, skipped=str(error))
    return Cell(name=name, sampler=dataclasses.replace(sampler, steps=steps), budget=budget)


def evaluations(sampler: Sampler, plan: Plan) -> int:
    """What a run along the plan will spend on each sample."""
    per_row = 1 if isinstance(sampler.solver, LinearSolver) else sampler.solver.evaluations_per_step
    assert per_row is not None
    return int(plan.passes) * per_row + (sampler.last == "denoise")


def command(experiment: Experiment, cell: Cell) -> str:
    """What makes the cell's samples again: of a checkpoint into `samples/`, of an oracle as a comparison of its own."""
    given = _flags(experiment.command)
    compare = experiment.compare
    if compare.oracle:
        at = {"nfe": cell.budget} if cell.budget is not None else {"tolerance_factors": cell.factor}
        chosen = {"samplers": cell.name, **{key: value for key, value in at.items() if value is not None}}
        given["--workdir"] = f"{given['--workdir'].rstrip('/')}_{_identifier(cell)}"  # the report of all stays
        return _command(given | {f"--config.compare.{key}": str(value) for key, value in chosen.items()})
    given = {key: value for key, value in given.items() if not key.startswith("--config.compare.")}
    name = _identifier(cell)
    settings = {f"samplers.{name}.{key}": value for key, value in _unusual(cell).items()}
    sampling = {"num_samples": compare.num_samples, "batch_size": compare.batch_size}
    chosen = {"sampling.samplers": name, **{f"sampling.{key}": value for key, value in sampling.items()}, **settings}
    return _command(given | {"--mode": "sample"} | {f"--config.{key}": _text(value) for key, value in chosen.items()})


def _flags(command: str) -> dict[str, str]:
    """The flags of a command of main.py, the last of each."""
    words, flags = shlex.split(command)[2:], {}
    while words:
        flag, equals, value = words.pop(0).partition("=")
        flags[flag] = value if equals else words.pop(0)
    return flags


def _command(flags: dict[str, str]) -> str:
    return shlex.join(["python", "main.py", *(f"{flag}={value}" for flag, value in flags.items())])


def _identifier(cell: Cell) -> str:
    parts = [cell.name, *cell.at.replace("tol x", "tolerance").split()]
    return "_".join(parts).translate(str.maketrans(".-+", "___"))


def _unusual(cell: Cell) -> dict[str, Any]:
    """The cell's solver, steps, and settings that are not their defaults."""
    usual = {field.name: field.default for cls in (type(cell.sampler.solver), Sampler) for field in _fields(cls)}
    always = ("solver", "steps")
    return {key: value for key, value in cell.settings.items() if key in always or value != usual[key]}


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
