"""What samplers are compared on: an oracle, or the newest checkpoint of the workdir."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from score_sde.data import whole
from score_sde.errors import Checks, UserError
from score_sde.evaluation.exact import EXACT_METRICS, Law
from score_sde.evaluation.extractors import EXTRACTORS
from score_sde.evaluation.halves import Halves, check_halves
from score_sde.evaluation.metrics import METRICS, Train
from score_sde.evaluation.moments import Gaussian
from score_sde.experiment.base import Experiment
from score_sde.experiment.pictures import POINTS, Picture, grid, scatter
from score_sde.oracles import ORACLES, Oracle
from score_sde.sde import SDE, check_kind
from score_sde.typing import Condition

LAW_SAMPLES = 50_000  # or 10 for each that is judged, if those are more
BASELINE_DRAWS = 5
IMAGES = 16

Batch = Float[np.ndarray, "n *shape"]


class Figure(NamedTuple):
    """mean and standard deviation over seeds, None for one seed."""

    mean: float
    spread: float | None

    @staticmethod
    def of(values: list[float]) -> "Figure":
        return Figure(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


class Measure(NamedTuple):
    """title, better ("lower" or "higher"): for tables. score: of a cell's samples of one seed. baseline: of data."""

    title: str
    better: str
    score: Callable[[Batch], float]
    baseline: Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """measured: of what, at which n. shape: of a sample. denoiser: of params. condition: what it is told of
    samples, by their indices. baseline: what data are called. preview: how many samples a picture shows. fingerprint:
    of a piece of work on it.
    """

    title: str
    measured: str
    shape: tuple[int, ...]
    params: Any
    denoiser: Callable[[Any], Any]
    condition: Callable[[Int[Array, "batch"]], Condition]
    measures: dict[str, Measure]
    baseline: str
    data: Batch
    preview: int
    picture: Callable[[Batch], Picture]
    fingerprint: Callable[[Any], str]


def check(experiment: Experiment) -> None:
    """Raises UserError where the experiment's comparison has nothing to be made on."""
    if experiment.compare.oracle:
        check_kind(f"compare.oracle={experiment.compare.oracle!r}", experiment.sampling_sde, SDE, "use a checkpoint")
        return
    if not _metrics(experiment):
        raise UserError("there is no metric to compare by: set compare.metrics")
    labels = "label" in experiment.train_records.fields
    counts = {
        "records": len(experiment.test_records),
        "size": experiment.compare.num_samples,
        "train": len(experiment.train_records),
    }
    with Checks() as check:
        for name in _metrics(experiment):
            needs = {"probabilities": False, "labels": labels}
            check_halves(check, "compare.metrics", name, experiment.metrics, **counts, **needs)


def _metrics(experiment: Experiment) -> tuple[str, ...]:
    return experiment.compare.metrics or experiment.evaluation.metrics


def of_oracle(experiment: Experiment) -> Problem:
    """With the exact denoiser, on the process that is sampled with."""
    name, sde, count = experiment.compare.oracle, experiment.sampling_sde, experiment.compare.num_samples
    assert isinstance(sde, SDE)
    oracle = ORACLES[name]()
    whole = oracle.sample(max(LAW_SAMPLES, 10 * count), seed=0)
    law = Law(_rows(whole), Gaussian(oracle.mean().reshape(-1), oracle.covariance()))
    draws = [_rows(oracle.sample(count, seed=1 + number)) for number in range(BASELINE_DRAWS)]
    measures = {}
    for metric_name in experiment.compare.metrics or EXACT_METRICS:
        metric = EXACT_METRICS[metric_name]
        judge = lambda batch, metric=metric: metric.score(_rows(batch), law)
        baseline = Figure.of([metric.score(draw, law) for draw in draws])
        measures[metric_name] = Measure(metric.title, "lower", judge, baseline)
    processes = [experiment.config["sde"], experiment.config["sampling_sde"]]
    plane = oracle.shape == (2,)
    return Problem(
        title=f"oracle {name}",
        measured=f"n = {count}, against the exact law",
        shape=oracle.shape,
        params=(),
        denoiser=lambda _: oracle.denoiser(sde),
        condition=lambda index: None,
        measures=measures,
        baseline="exact samples",
        data=whole,
        preview=POINTS if plane else IMAGES,
        picture=_scatter(oracle) if plane else lambda batch: grid(_grey(batch)),
        fingerprint=lambda part: _hash(["oracle", name, processes, part]),
    )


def of_checkpoint(experiment: Experiment, step: int, params: Any) -> Problem:
    """With the trained denoiser; samples are judged by their pixels against two halves of the test split."""
    levels, size, label = experiment.levels, experiment.compare.num_samples, experiment.sampling.label
    extractor = EXTRACTORS["pixels"]().build(experiment.source.shape, levels.number, experiment.mesh)
    names, records, train = _metrics(experiment), experiment.train_records, None
    if any(METRICS[name].needs_train for name in names):
        labels = whole(records, "label") if "label" in records.fields else None
        train = Train(extractor(whole(records, "image")).features, labels)
    halves = Halves.of(extractor(whole(experiment.test_records, "image")), size, experiment.metrics, train)

    quantised = lambda batch: np.asarray(levels.quantise(jnp.asarray(batch, jnp.float32)))

    def judge(metric_name: str, batch: Batch) -> float:
        value = halves.score(metric_name, extractor(quantised(batch))).value
        assert value is not None  # a part is no larger than a cell's samples
        return value

    measures = {}
    for name in names:
        real = halves.floor(name).value
        assert real is not None
        measure = lambda batch, name=name: judge(name, batch)
        measures[name] = Measure(extractor.title(name), METRICS[name].better, measure, Figure(real, None))
    shown = experiment.shown(IMAGES)
    images = whole(experiment.test_records, "image", shown)
    return Problem(
        title=f"checkpoint at step {step}, {experiment.config['data']['source']}",
        measured=f"{extractor.description}, n = {halves.size}",
        shape=experiment.source.shape,
        params=params,
        denoiser=experiment.sampling_denoiser,
        condition=lambda index: experiment.condition(label.of_samples(index, experiment.architecture.classes)),
        measures=measures,
        baseline="real test data",
        data=np.asarray(levels.place(jnp.asarray(images), 0.5 * jnp.ones(images.shape, jnp.float32))),
        preview=shown,
        picture=lambda batch: experiment.picture(quantised(batch)),
        fingerprint=lambda part: experiment.fingerprint(step, experiment.config["sampling_sde"], label, part),
    )


def _rows(batch: Batch) -> np.ndarray:
    return np.asarray(batch, np.float64).reshape(len(batch), -1)


def _grey(batch: Batch) -> UInt8[np.ndarray, "n height width 1"]:
    """[−1, 1] to 8 bits; what lies outside is shown black or white."""
    return np.round(255 * np.clip(0.5 * (batch + 1), 0, 1)).astype(np.uint8)


def _scatter(oracle: Oracle) -> Callable[[Batch], Picture]:
    """Points of the plane as dots, in the square that holds the oracle's."""
    reach = 1.25 * float(np.abs(oracle.sample(1000, seed=0)).max())

    return lambda batch: scatter(batch, (-reach, reach))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def build(experiment: Experiment) -> tuple[Experiment, Problem]:
    """The problem, and the experiment with its process as learned."""
    if experiment.compare.oracle:
        return experiment, of_oracle(experiment)
    experiment, step, params = experiment.restore()
    return experiment, of_checkpoint(experiment, step, jax.block_until_ready(params))
