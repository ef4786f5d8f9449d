"""--mode=evaluate: scores samples of checkpoints, or a folder of images, against real data.

Of each sampler, by each metric with each extractor that it goes with; of real data and of pure noise beside them, at
the same number of images. `evaluation.checkpoints` says of which checkpoints: the newest, all of them, or all and new
ones as they appear (`follow`), until the training's last step.

    reports/evaluation.json        of the checkpoint evaluated last; with the summary and the page of `report`
    reports/evaluation/STEP.json   of each, under a fingerprint of all that it depends on; what is there is not repeated
    reports/evaluation/            curve.png over training, best.json, and a gallery of samples with their nearest
                                   training images
    reports/images.json            of the folder `evaluation.images`, instead

What was finished of a checkpoint that was interrupted is kept, batch by batch.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.distributed.processes import from_first, wait_for_all
from score_sde.errors import RunFailed, UserError
from score_sde.experiment import report, sample
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import alone
from score_sde.experiment.evaluating import figures, folder, pictures, real, samples
from score_sde.experiment.evaluating.figures import Reference
from score_sde.training.interrupt import StopRequest
from score_sde.writers import say, write_json

POLL_SECONDS = 10.0  # between two looks for new checkpoints
LARGEST_LIST = 4096  # checkpoints


def check(experiment: Experiment) -> None:
    """Raises UserError where there is too little to score with, or nothing to score, or nowhere to keep it."""
    evaluation, size = experiment.evaluation, experiment.sampling.num_samples
    if evaluation.metrics:
        samples.check_extractors(experiment, experiment.source.shape)
    real.check_folder(real.folder(experiment))
    if evaluation.images:
        size = folder.check(experiment)
    elif size < 2:
        raise UserError("sampling.num_samples must be at least 2 to evaluate samples, not 1")
    figures.check(experiment, size)


def needs_checkpoint(experiment: Experiment) -> bool:
    """Whether one must be there already: not for images, and `follow` waits for the first."""
    return not experiment.evaluation.images and experiment.evaluation.checkpoints != "follow"


def needs_model(experiment: Experiment) -> bool:
    """Not for images."""
    return not experiment.evaluation.images


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Samples and scores what is not scored yet."""
    if experiment.evaluation.images:
        folder.run(experiment, stop)
        return
    sample.say_if_untrained(experiment, "evaluate")
    reference = Reference(experiment, samples.built(experiment), experiment.sampling.num_samples)
    lock, last = experiment.workdir.reports / "evaluation" / ".lock", None
    for step in _steps(experiment, stop):
        with alone(lock, "evaluate", stop):
            scored = _evaluate(experiment, step, reference, stop)
            if scored is not None and scored.new:
                _write(experiment, scored)
        last = scored or last
    if last is not None and not last.new:  # with what other modes have found since
        with alone(lock, "evaluate", stop):
            _write(experiment, last)


class Scored(NamedTuple):
    """A checkpoint: the experiment as learned, its step and figures. new: they were not there before."""

    experiment: Experiment
    step: int
    figures: dict[str, Any]
    new: bool


def _write(experiment: Experiment, scored: Scored) -> None:
    """The figures of this checkpoint and of all like it, as files, pictures and the page."""
    if jax.process_index() == 0:
        reports, found = experiment.workdir.reports, scored.figures
        write_json(reports / "evaluation.json", found)
        pictures.over_training(reports / "evaluation", _alike(experiment, found["settings"]))
        report.write(scored.experiment, scored.step, found)
    wait_for_all("evaluation")


def _steps(experiment: Experiment, stop: StopRequest) -> Iterator[int | None]:
    """The checkpoints to score, as they come; None for the newest sound one."""
    which, done, waits_after = experiment.evaluation.checkpoints, set(), -1
    if which == "newest":
        yield None
        return
    while True:
        known = _known_steps(experiment)
        new = [step for step in known if step not in done]
        for step in new:
            done.add(step)
            yield step
        if which != "follow" or (known and known[-1] >= experiment.training_steps):
            return
        last = known[-1] if known else 0
        if last > waits_after:
            say(f"evaluate: waits for checkpoints after step {last}")
            waits_after = last
        end = time.monotonic() + POLL_SECONDS
        while time.monotonic() < end:
            stop.check()
            time.sleep(0.2)


def _known_steps(experiment: Experiment) -> list[int]:
    """The complete checkpoints, as process 0 sees them."""
    steps: list[int] = []
    if experiment.workdir.checkpoints.exists():
        checkpoints = experiment.open_used()
        try:
            steps = checkpoints.steps()[-LARGEST_LIST:]
        finally:
            checkpoints.close()
    padded = np.full(LARGEST_LIST, -1, np.int32)
    padded[: len(steps)] = steps
    return [int(step) for step in from_first(padded) if step >= 0]


def _evaluate(experiment: Experiment, wanted: int | None, reference: Reference, stop: StopRequest) -> Scored | None:
    """None where the checkpoint has gone meanwhile."""
    try:
        experiment, step, params = experiment.restore(wanted)
    except UserError:
        if wanted is None or wanted in _known_steps(experiment):
            raise
        say(f"evaluate: checkpoint {wanted} was removed before it could be scored; training.keep_every keeps some")
        return None
    path = experiment.workdir.reports / "evaluation" / f"{step:08d}.json"
    key = _fingerprint(experiment, step, reference)
    found = _stored(path, key)
    if found is not None:
        say(f"evaluate: step {step} is done")
        for name in experiment.samplers:
            samples.forget(experiment, step, name)  # of a run that died before it could
        return Scored(experiment, step, found, new=False)
    reference.prepare(stop)
    shown = experiment.shown(pictures.SHOWN)
    every = {
        name: samples.of_checkpoint(experiment, step, params, name, reference.extractors, shown, stop)
        for name in experiment.samplers
    }
    for name, each in every.items():
        if not each.label.size:
            raise RunFailed(f"all samples of {name} at step {step} failed; reports/evaluation has nothing of them")
    stop.check()
    if jax.process_index() == 0:
        found = {
            "step": step,
            "fingerprint": key,
            "settings": _fingerprint(experiment, None, reference),
            "samples": experiment.sampling.num_samples,
            "reference": real.described(experiment),
            "metrics": reference.figures({name: each.features for name, each in every.items()}),
            "samplers": {name: _told(experiment, name, each, reference) for name, each in every.items()},
        }
        pictures.galleries(experiment, path.parent / f"{step:08d}", every, reference)
        write_json(path, found)
    wait_for_all("evaluation of a checkpoint")
    for name in every:
        samples.forget(experiment, step, name)
    found = _stored(path, key)
    assert found is not None  # just written
    _say(found)
    return Scored(experiment, step, found, new=True)


def _told(experiment: Experiment, name: str, found: samples.Sampled, reference: Reference) -> dict[str, Any]:
    seen = {each: figures.classes(experiment, extractor, found) for each, extractor in reference.extractors.items()}
    label = {} if str(experiment.sampling.label) == "none" else {"label": str(experiment.sampling.label)}
    return {
        **found.cost,
        "failed": found.failed,
        "settings": experiment.config["samplers"][name] | label,
        "classes": {each: value for each, value in seen.items() if value is not None},
    }


def _say(found: dict[str, Any]) -> None:
    for name, sampler in found["samplers"].items():
        say(f"evaluate: step {found['step']}, {name}: {found['samples'] - sampler['failed']} samples")
        for row in found["metrics"].values():
            say(f"  {figures.line(row, name)}")


def _fingerprint(experiment: Experiment, step: int | None, reference: Reference) -> str:
    """Of all that the figures of a checkpoint depend on; of step None what those of all have in common."""
    evaluation, records = experiment.evaluation, (experiment.train_records, experiment.test_records)
    statistics = () if evaluation.reference in real.SPLITS else (Path(evaluation.reference).read_bytes(),)
    parts = {
        "samples": [sample.record_of(experiment, step, name) for name in experiment.samplers],
        "statistics": [hashlib.sha256(content).hexdigest() for content in statistics],
        "metrics": list(evaluation.metrics),
        "settings": str(experiment.metrics),
        "reference": evaluation.reference,
        "data": [each.fingerprint for each in records],
        "extractors": {name: each.fingerprint for name, each in reference.extractors.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """The figures in a file, if they are of this fingerprint; the same on every process."""
    found = None
    try:
        found = json.loads(path.read_text())
        found = found if found["fingerprint"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if not from_first(np.asarray(found is not None)):
        return None
    if found is None:
        raise RunFailed(
            f"{path} is there for process 0 but not here: the workdir must be on storage that all hosts share"
        )
    return found


def _alike(experiment: Experiment, settings: str) -> list[dict[str, Any]]:
    """The figures of all checkpoints that were scored with the same settings, by step."""
    found = []
    for path in sorted((experiment.workdir.reports / "evaluation").glob("[0-9]*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return [each for each in found if each.get("settings") == settings]
