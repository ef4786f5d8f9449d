"""Features of the samples of one checkpoint, batch by batch: sampled, looked at by each extractor, and forgotten.

Samples that --mode=sample has left for this checkpoint are taken from its file; they are the same. Each finished batch
is kept until all are there, so that a run that was killed goes on with the next one and comes to the same figures.
"""

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from score_sde.errors import Checks, UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.features import Features
from score_sde.experiment import sample
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard, run_batches
from score_sde.experiment.evaluating.real import as_arrays, joined
from score_sde.training.interrupt import StopRequest
from score_sde.typing import Params

Extractors = dict[str, Extractor]


class Sampled(NamedTuple):
    """features: by extractor, of the samples that did not fail, in their order. label: of each of these. first: the
    first images, of all. cost: evaluations a sample, seconds of all batches and of compiling. failed: how many."""

    features: dict[str, Features]
    label: Int[np.ndarray, "n"]
    first: Shaped[np.ndarray, "shown *shape"]
    cost: dict[str, float]
    failed: int


def check_extractors(experiment: Experiment, shape: tuple[int, ...]) -> None:
    """Raises UserError where there is none, or one that is not for images of `shape` or lacks its weights."""
    with Checks() as checks:
        checks.that(bool(experiment.extractors), "evaluation.extractors must name at least one extractor")
        for name, settings in experiment.extractors.items():
            try:
                settings.check(shape)
            except UserError as error:
                checks.that(False, f"evaluation.extractors: {name}: {error}")


def built(experiment: Experiment) -> Extractors:
    """The extractors for the experiment's data."""
    source, mesh = experiment.source, experiment.mesh
    return {name: each.build(source.shape, source.levels, mesh) for name, each in experiment.extractors.items()}


def looked_at(extractors: Extractors, image: Shaped[np.ndarray, "n *shape"]) -> Arrays:
    """Features of a batch by each extractor, for a file."""
    arrays: Arrays = {}
    for name, extractor in extractors.items():
        arrays |= {f"{name}.{key}": value for key, value in as_arrays(extractor(image)).items()}
    return arrays


def features_of(extractors: Extractors, parts: list[Arrays]) -> dict[str, Features]:
    """What `looked_at` made of batches, joined."""
    of = lambda name, part: Features(part[f"{name}.features"], part.get(f"{name}.probabilities"))
    return {name: joined([of(name, part) for part in parts]) for name in extractors}


def of_checkpoint(
    experiment: Experiment, step: int, params: Params, name: str, extractors: Extractors, shown: int, stop: StopRequest
) -> Sampled:
    """Of the sampler `name`; experiment, step and params: as `Experiment.restore` gives them."""
    record = sample.record_of(experiment, step, name)
    stored = sample.read(experiment, name, record)
    size, total = experiment.sampling.batch_size, experiment.sampling.num_samples
    batch = _from_file(stored, size) if stored is not None else sample.batches(experiment, name, params)

    def compute(number: int) -> Arrays:
        arrays = {
            key: value[: total - number * size] if np.ndim(value) else value for key, value in batch(number).items()
        }
        finite = np.isfinite(arrays["samples"]).reshape(len(arrays["samples"]), -1).all(axis=1)
        return {
            **looked_at(extractors, arrays["image"][finite]),  # failed samples are no images
            "label": arrays["label"][finite],
            "image": arrays["image"][: max(0, shown - number * size)],
            "evaluations": arrays["evaluations"],
            "seconds": arrays["seconds"],
            "compile_seconds": arrays["compile_seconds"],
        }

    prints = [extractor.fingerprint for extractor in extractors.values()]
    key = hashlib.sha256(json.dumps([record, prints, shown]).encode()).hexdigest()[:16]
    folder = experiment.workdir.reports / "evaluation" / f".{step}_{name}"
    parts = run_batches(f"evaluate {name} at step {step}", folder, key, -(-total // size), compute, stop)
    label = np.concatenate([part["label"] for part in parts])
    cost = {
        "evaluations": float(np.concatenate([part["evaluations"] for part in parts]).mean()),
        "seconds": float(sum(part["seconds"] for part in parts)),
        "compile_seconds": float(max(part["compile_seconds"] for part in parts)),
    }
    first = np.concatenate([part["image"] for part in parts])
    return Sampled(features_of(extractors, parts), label, first, cost, total - len(label))


def forget(experiment: Experiment, step: int, name: str) -> None:
    """Removes what was kept of the batches, once the figures are on disk."""
    discard(experiment.workdir.reports / "evaluation" / f".{step}_{name}")


def _from_file(stored: Arrays, size: int) -> Callable[[int], Arrays]:
    each, batches = ("samples", "image", "label", "evaluations"), -(-len(stored["label"]) // size)

    def batch(number: int) -> Arrays:
        rows = {key: stored[key][number * size : (number + 1) * size] for key in each}
        return rows | {"seconds": stored["seconds"] / batches, "compile_seconds": stored["compile_seconds"]}

    return batch
