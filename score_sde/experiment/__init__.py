"""What main.py does, one file a mode. To add one: a file with `run(experiment, stop)`, and its line in `MODES`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from score_sde.distributed.processes import together
from score_sde.errors import UserError
from score_sde.experiment import (
    agreement,
    compare,
    evaluate,
    exporting,
    importing,
    likelihood,
    plan,
    posthoc,
    sample,
    statistics,
    train,
    train_classifier,
    verify,
)
from score_sde.experiment import all as all_modes
from score_sde.experiment.base import Experiment
from score_sde.training.interrupt import StopRequest


class Mode(NamedTuple):
    """run: the mode. check: of its settings. needs_checkpoint: whether a trained model must be there already.

    options: a dataclass of what is no setting of the experiment, given as --MODE.KEY=VALUE; run and check take one
    last. needs_workdir: whether it writes, and so must be told where. needs_model: whether it uses the network and its
    process, which otherwise need not fit the data.
    """

    run: Callable[..., None]
    check: Callable[..., None] = lambda *_: None
    needs_checkpoint: Callable[[Experiment], bool] = lambda _: True
    options: type | None = None
    needs_workdir: bool = True
    needs_model: Callable[[Experiment], bool] = lambda _: True


# Modes of the program itself, without a config and a workdir.
ALONE: dict[str, Callable[[StopRequest], None]] = {"verify": verify.run}

MODES: dict[str, Mode] = {
    "train": Mode(train.run, train.check, lambda _: False),
    "train_classifier": Mode(train_classifier.run, train_classifier.check, lambda _: False),
    "sample": Mode(sample.run),
    "evaluate": Mode(evaluate.run, evaluate.check, evaluate.needs_checkpoint, needs_model=evaluate.needs_model),
    "statistics": Mode(
        statistics.run, statistics.check, lambda _: False, needs_workdir=False, needs_model=lambda _: False
    ),
    "likelihood": Mode(likelihood.run, likelihood.check),
    "compare": Mode(compare.run, compare.check, compare.needs_checkpoint),
    "import": Mode(importing.run, importing.check, lambda _: False, importing.Import),
    "export": Mode(exporting.run),
    "plan": Mode(plan.run, plan.check, lambda _: False, needs_workdir=False),
    "ema": Mode(posthoc.run, posthoc.check, lambda _: False, posthoc.PosthocEMA),
    "all": Mode(all_modes.run, all_modes.check, lambda _: False),
}


def run(name: str, experiment: Experiment, stop: StopRequest, options: Any = None) -> None:
    """Runs the mode `name`: checks the workdir and its checkpoint, and only then changes it. options: the mode's own.

    Raises UserError with nothing changed, Interrupted with everything saved.
    """
    mode = MODES[name]
    own = () if mode.options is None else (options,)
    with together():
        mode.check(experiment, *own)
        if mode.needs_model(experiment):
            if experiment.home is None or not _check_workdir(experiment, mode.needs_checkpoint(experiment)):
                jax.eval_shape(experiment.init_state)  # what the network refuses, before the workdir is made
            agreement.check(experiment)  # last, since it computes a few numbers on the device
        elif experiment.home is not None:
            experiment.workdir.check(experiment.config, needs_checkpoint=False)
    if experiment.home is not None:
        experiment.workdir.create(experiment.config)
    mode.run(experiment, stop, *own)


def _check_workdir(experiment: Experiment, needs_checkpoint: bool) -> bool:
    """Whether there is a checkpoint, which fits. Raises UserError where the workdir cannot be used, or lacks one."""
    workdir = experiment.workdir
    workdir.check(experiment.config, needs_checkpoint=needs_checkpoint)
    if needs_checkpoint:
        experiment.check_average()
    found = False
    if workdir.checkpoints.exists():
        checkpoints = experiment.open_checkpoints(read_only=True)
        try:
            checkpoints.check(experiment.abstract_state())
            found = bool(checkpoints.steps())
        finally:
            checkpoints.close()
    if needs_checkpoint and not found:
        raise UserError(f"no checkpoint in {workdir.checkpoints}; run with --mode=train first")
    return found
