"""Figures of samples from their features, as plain data.

Each metric is taken with each extractor that it can be taken with, under the key METRIC_EXTRACTOR. It has

    real, noise, and each sampler    `value` and `spread`: against two halves of real data, see `evaluation.halves`;
                                     of `n` samples a set, at which real data's is the floor
    samplers, besides                `whole`: of all samples against all real records, with the 95 % interval of it,
                                     or where the metric has no error of its own of a tenth as many (`interval_n`)

Metrics that look for training data compare with the test split, whatever `evaluation.reference` is. Statistics of
another project have no samples: of these there is `whole` alone, and no floor.
"""

from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import Checks, UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.features import Features
from score_sde.evaluation.halves import Halves, Score, noise_images, part_size
from score_sde.evaluation.metrics import METRICS, Train, check_needs, interval, score, take
from score_sde.evaluation.moments import Moments
from score_sde.experiment.base import Experiment
from score_sde.experiment.evaluating import real
from score_sde.experiment.evaluating.samples import Extractors, Sampled
from score_sde.training.interrupt import StopRequest


class Reference:
    """What samples are compared with, and the figures of a set of them. With features of real data at hand, and of
    noise, which all processes compute together; the figures are for process 0.

    size: how many samples of each sampler, or images of a folder, there will be.
    """

    def __init__(self, experiment: Experiment, extractors: Extractors, size: int, stop: StopRequest) -> None:
        self._experiment, self.extractors, self._size = experiment, extractors, size
        self._noise: dict[str, Features] = {}
        self._baselines: dict[tuple[str, str], dict[str, Any]] = {}
        self._real: dict[tuple[str, str], Features] = {}
        for metric, name in self.pairs():
            needs_train = METRICS[metric].needs_train
            chosen = "test" if needs_train else experiment.evaluation.reference
            for split in (chosen, "train") if needs_train else (chosen,):
                if split in real.SPLITS and (name, split) not in self._real:
                    self._real[name, split] = real.features(experiment, extractors[name], split, stop)
        for name, extractor in extractors.items():
            stop.check()
            self._noise[name] = extractor(noise_images(extractor.shape, extractor.levels, size))

    def pairs(self) -> list[tuple[str, str]]:
        """(metric, extractor) of all figures."""
        return pairs(self._experiment, {name: extractor.classes for name, extractor in self.extractors.items()})

    def figures(self, samples: dict[str, dict[str, Features]]) -> dict[str, Any]:
        """By key: the figures of each sampler's samples, of real data and of noise. samples: by sampler, extractor."""
        return {f"{metric}_{name}": self._metric(metric, name, samples) for metric, name in self.pairs()}

    def training(self) -> Features | None:
        """Of the training data by the first extractor, where a metric needed them."""
        return self._real.get((next(iter(self.extractors), ""), "train"))

    def _metric(self, metric: str, name: str, samples: dict[str, dict[str, Features]]) -> dict[str, Any]:
        extractor, settings, row = self.extractors[name], self._experiment.metrics, METRICS[metric]
        told = {
            "title": extractor.title(metric),
            "better": row.better,
            "metric": metric,
            "extractor": extractor.description,
        }
        own = {sampler: found[name] for sampler, found in samples.items()}
        if not row.needs_train and self._experiment.evaluation.reference not in real.SPLITS:
            known = real.foreign(Path(self._experiment.evaluation.reference))
            return (
                told
                | {"n": None, "real": _nothing(), "noise": _nothing()}
                | {
                    sampler: _nothing() | {"whole": _of_gaussians(metric, found, known, extractor)}
                    for sampler, found in own.items()
                }
            )
        reference = self._real[name, "test" if row.needs_train else self._experiment.evaluation.reference]
        train = self._train(name) if row.needs_train else None
        halves = Halves.of(reference, self._size, settings, train)
        figures = {sampler: halves.score(metric, found) for sampler, found in own.items()}
        if (metric, name) not in self._baselines:  # the same for every checkpoint
            noise = take(self._noise[name], slice(halves.size))
            floor, of_noise = halves.floor(metric)._asdict(), halves.score(metric, noise)._asdict()
            self._baselines[metric, name] = {"n": halves.size, "real": floor, "noise": of_noise}
        found: dict[str, Any] = dict(self._baselines[metric, name])
        for sampler, features in own.items():
            value = score(metric, features, reference, settings, train)
            around = interval(metric, value, features, reference, settings, train)
            whole = {"value": value.value, "error": value.error, "n": len(features.features)}
            whole |= {"records": len(reference.features)}
            if around is not None:
                whole |= {"low": around.low, "high": around.high, "interval_n": around.n}
            found[sampler] = figures[sampler]._asdict() | {"whole": whole}
        return told | found

    def _train(self, name: str) -> Train:
        records = self._experiment.train_records
        labels = records.gather(np.arange(len(records)), ("label",))["label"] if "label" in records.fields else None
        return Train(self._real[name, "train"].features, labels)


def classes(experiment: Experiment, extractor: Extractor, found: Sampled) -> dict[str, Any] | None:
    """How many samples a classifier of the data's own classes sees in each class, and how often the one asked for."""
    probabilities = found.features[extractor.name].probabilities
    if probabilities is None or not extractor.classes or extractor.classes != experiment.source.classes:
        return None
    seen = probabilities.argmax(axis=1)
    asked = found.label >= 0
    right = float((seen == found.label)[asked].mean()) if asked.any() else None
    return {"histogram": np.bincount(seen, minlength=extractor.classes).tolist(), "accuracy": right}


def pairs(experiment: Experiment, known: dict[str, int]) -> list[tuple[str, str]]:
    """Each metric with each extractor, of which `known` has the number of classes, that it can be taken with."""
    able = lambda metric, name: known[name] > 0 or not METRICS[metric].needs_probabilities
    return [(metric, name) for metric in experiment.evaluation.metrics for name in known if able(metric, name)]


def check(experiment: Experiment, known: dict[str, int]) -> None:
    """Raises UserError where a metric lacks what it needs: samples, real records, labels, or a classifier."""
    evaluation, size = experiment.evaluation, experiment.sampling.num_samples
    labels = "label" in experiment.train_records.fields
    with Checks() as check:
        check.that(size >= 2, "sampling.num_samples must be at least 2 to evaluate samples, not 1")
        for metric in evaluation.metrics:
            row = METRICS[metric]
            if evaluation.reference not in real.SPLITS and not row.needs_train:
                of_gaussians = row.of_gaussians is not None
                check.that(of_gaussians, f"evaluation.metrics: {metric!r} needs real data, not mu and sigma alone")
                continue
            split = "test" if row.needs_train else evaluation.reference
            records = experiment.train_records if split == "train" else experiment.test_records
            n, told = part_size(len(records), max(size, 2)), any(known.values())
            check_needs(check, "evaluation.metrics", metric, n=n, probabilities=told, labels=labels)


def _of_gaussians(metric: str, found: Features, known: real.Statistics, extractor: Extractor) -> dict[str, Any]:
    dim = len(known.gaussian.mean)
    if dim != extractor.dim:
        has = f"{extractor.name} has {extractor.dim}"
        raise UserError(f"evaluation.reference: mu and sigma are of {dim} features, {has}")
    if known.extractor not in (None, extractor.fingerprint):
        raise UserError(f"evaluation.reference: mu and sigma are of another extractor than {extractor.description}")
    compare = METRICS[metric].of_gaussians
    assert compare is not None  # checked before
    value = compare(Moments.of(found.features).gaussian(), known.gaussian)
    return {"value": value, "error": None, "n": len(found.features), "records": None}


def _nothing() -> dict[str, Any]:
    return Score(None, None)._asdict()
