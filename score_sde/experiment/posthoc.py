"""--mode=ema: the average of any length from the snapshots that training kept of a few: see `training.posthoc`.

    python main.py --mode=ema --config=CONFIG --workdir=DIR --ema.length=0.13 [--ema.step=N]

It is put into `ema/LENGTH/` of the workdir, one for each length, in the place of an earlier one. The modes that use a
trained model take it with --config.evaluation.ema_length=0.13.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.distributed.mesh import put, replicated
from score_sde.errors import Checks, UserError
from score_sde.experiment.base import Experiment
from score_sde.training.ema import LONGEST
from score_sde.training.interrupt import StopRequest
from score_sde.training.posthoc import Snapshot, combine
from score_sde.training.state import Averages
from score_sde.typing import Params
from score_sde.writers import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosthocEMA:
    """length: σ_rel of the average, see `training.ema`. step: of the snapshot where it ends, 0 for the last one."""

    length: float = 0.0
    step: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            length = self.length
            check.that(0 < length <= LONGEST, f"length must be given and lie in (0, {LONGEST:.4f}], not {length:g}")
            check.that(self.step >= 0, f"step must be at least 0, not {self.step}")


def check(experiment: Experiment, options: PosthocEMA) -> None:
    """Raises UserError unless there are snapshots, one of them of the step."""
    if not experiment.training.ema_lengths:
        raise UserError("--mode=ema needs training.ema_lengths, such as 0.05,0.1, from the start of the training")
    steps = _steps(experiment)
    if options.step and options.step not in steps:
        near = min(steps, key=lambda step: abs(step - options.step))
        raise UserError(f"--ema.step={options.step} is none of the {len(steps)} snapshots; the nearest is {near}")


def run(experiment: Experiment, stop: StopRequest, options: PosthocEMA) -> None:
    """Writes the average, unless it is there."""
    lengths, steps = experiment.training.ema_lengths, _steps(experiment)
    last = options.step or steps[-1]
    used = [step for step in steps if step <= last]
    wanted = Snapshot(last, options.length)
    combination = combine([Snapshot(step, length) for step in used for length in lengths], wanted)
    path = experiment.workdir.average(options.length)
    path.mkdir(parents=True, exist_ok=True)
    target = experiment.open_averages(path, read_only=False)
    try:
        if target.steps() == [last]:
            say(f"ema: length {options.length:g} at step {last} is in {path} already")
            return
        coefficients = combination.coefficients.reshape(len(used), len(lengths))
        average = _combined(experiment, dict(zip(used, coefficients, strict=True)), stop)
        step = put(replicated(experiment.mesh), np.int32(last))
        target.clear()
        target.save(Averages(step, (average,)), None)
    finally:
        target.close()
    error = f"the profile's relative error is {combination.error:.1e}"
    say(f"ema: length {options.length:g} at step {last} from {len(used)} snapshots in {path}; {error}")


def _steps(experiment: Experiment) -> list[int]:
    """Of the snapshots. Raises UserError where there are none."""
    path = experiment.workdir.snapshots
    if path.is_dir():
        snapshots = experiment.open_averages(path, read_only=True)
        try:
            if steps := snapshots.steps():
                return steps
        finally:
            snapshots.close()
    raise UserError(f"no snapshot in {path}; run with --mode=train first")


def _combined(experiment: Experiment, coefficients: dict[int, Any], stop: StopRequest) -> Params:
    """Σ c θ over the snapshots, read one after another, wherever their parts are."""
    target = experiment.abstract_state().ema[-len(experiment.training.ema_lengths) :]
    snapshots = experiment.open_averages(experiment.workdir.snapshots, read_only=True)
    total = None
    try:
        for step, row in coefficients.items():
            stop.check()
            averages = snapshots.restore_ema_at(step, target).params
            part = _weighted(averages, jnp.asarray(row, jnp.float32))
            total = part if total is None else _add(total, part)
    finally:
        snapshots.close()
    return total


@jax.jit
def _weighted(averages: tuple[Params, ...], row: jax.Array) -> Params:
    return jax.tree.map(lambda *leaves: sum(c * leaf for c, leaf in zip(row, leaves, strict=True)), *averages)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: Params, part: Params) -> Params:
    return jax.tree.map(jnp.add, total, part)
