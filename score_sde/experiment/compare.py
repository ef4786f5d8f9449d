"""--mode=compare: samplers by numbers of network evaluations, on the newest checkpoint or on an oracle.

Leaves `reports/compare/`: `report.html`, `compare.csv`, `compare.json`, plots, and in `cells/` each finished cell under
a fingerprint of all that it depends on, which is never run again.
"""

import dataclasses
import functools
import traceback
from collections.abc import Callable

from score_sde.errors import RunFailed, UserError
from score_sde.experiment import agreement
from score_sde.experiment.base import Experiment
from score_sde.experiment.comparison import problem, report
from score_sde.experiment.comparison.bench import Bench, Result
from score_sde.experiment.comparison.cells import Cell, all_cells, samplers_of
from score_sde.experiment.sample import say_if_untrained
from score_sde.rng import SEEDS
from score_sde.samplers import Sampler
from score_sde.training.interrupt import Interrupted, StopRequest
from score_sde.writers import Progress, say

GUESS = 100  # evaluations of a sampler that chooses its steps itself, for the progress bar


def check(experiment: Experiment) -> None:
    """Raises UserError that names everything that cannot be compared."""
    parts: list[tuple[str, Callable[[], object]]] = [("", functools.partial(problem.check, experiment))]
    for name, sampler in samplers_of(experiment).items():
        one_step = dataclasses.replace(sampler, steps=1)
        parts.append((f"{name}: ", functools.partial(one_step.check_process, experiment.sampling_sde)))
        parts.append((f"{name}: ", functools.partial(_check_denoiser, experiment, sampler)))
    problems = []
    for where, part in parts:
        try:
            part()
        except UserError as error:
            problems.append(f"compare: {where}{error}")
    if experiment.sampling.seed + experiment.compare.seeds - 1 not in SEEDS:
        problems.append("compare: sampling.seed + compare.seeds must lie within 2**32")
    if problems:
        raise UserError("config: " + "; ".join(dict.fromkeys(problems)))


def _check_denoiser(experiment: Experiment, sampler: Sampler) -> None:
    if not experiment.compare.oracle:
        agreement.check_network(experiment, sampler)
    elif sampler.solver.learned_variance:
        raise UserError("an oracle has no learned variances; use 'ancestral', or a checkpoint")


def needs_checkpoint(experiment: Experiment) -> bool:
    """Not on an oracle."""
    return not experiment.compare.oracle


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Every cell that is not finished yet, and the report of all."""
    experiment, what = problem.build(experiment)
    if not experiment.compare.oracle:
        say_if_untrained(experiment, "compare")
    folder = experiment.workdir.reports / "compare" / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(experiment, what, folder, stop)
    cells = all_cells(experiment, stop)
    results = _run_cells(bench, cells, stop)
    say(report.write(experiment, bench, cells, results, folder.parent))
    if not any(result.record["status"] == "done" for result in results):
        raise RunFailed(f"no cell could be finished; the reasons are in {folder.parent / 'report.html'}")


def _run_cells(bench: Bench, cells: list[Cell], stop: StopRequest) -> list[Result]:
    """Of each cell; one that raises has failed, and the others go on. Raises Interrupted between batches."""
    skipped = lambda cell: Result({"status": "skipped", "reason": cell.skipped}, None)
    results = [skipped(cell) if cell.skipped else bench.stored(cell) for cell in cells]
    cost = lambda cell: cell.budget or GUESS
    known = [cell for cell, result in zip(cells, results, strict=True) if result is not None]
    total, done = sum(map(cost, cells)), sum(map(cost, known))
    say(f"compare: {len(cells)} cells on {bench.problem.title}, {len(known)} of them finished or skipped")
    progress = Progress("compare", total, done=done, unit="NFE")
    try:
        for number, cell in enumerate(cells):
            if results[number] is not None:
                continue
            stop.check()
            result = results[number] = _run_one(bench, cell)
            say(f"compare [{number + 1}/{len(cells)}] {cell.name} at {cell.at}: {report.line(result, bench)}")
            progress.advance(cost(cell))
    finally:
        progress.close()
    return [result for result in results if result is not None]


def _run_one(bench: Bench, cell: Cell) -> Result:
    try:
        return bench.measure(cell)
    except Interrupted:
        raise
    except Exception as error:  # too little memory, a solver that cannot be compiled, …: not stored, so tried again
        traceback.print_exc()  # the report has its last line alone
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Result({"status": "failed", "reason": reason}, None)
