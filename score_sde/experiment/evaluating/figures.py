"""Figures of samples from their features, as plain data.

Each metric is taken with each extractor that it can be taken with, under the key METRIC_EXTRACTOR. It has

    real, noise, and each sampler    `value` and `spread`: against two halves of real data, see `evaluation.halves`;
                                     of `n` samples a set, at which real data's is the floor
    samplers, besides                `whole`: of all samples against all real records, with the 95 % interval of it,
                                     or where the metric has no error of its own of a tenth as many (`interval_n`)

Metrics that look for training data compare with the test split, whatever `evaluation.reference` is. Statistics of
another project have no samples: of these there is `whole` alone, and no floor.
"""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.data import whole
from score_sde.distributed.processes import together
from score_sde.errors import Checks, UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.features import Features
from score_sde.evaluation.halves import Halves, Score, check_halves, part_size
from score_sde.evaluation.metrics import METRICS, Train, interval, score, take
from score_sde.evaluation.moments import Moments
from score_sde.experiment.base import Experiment
from score_sde.experiment.evaluating import real
from score_sde.experiment.evaluating.samples import Extractors, Sampled
from score_sde.training.interrupt import StopRequest


class Reference:
    """What samples are compared with, and, once it is prepared, the figures of a set of them, for process 0.

    size: how many samples of each sampler, or images of a folder, there will be.
    """

    def __init__(self, experiment: Experiment, extractors: Extractors, size: int) -> None:
        self._experiment, self.extractors, self._size = experiment, extractors, size
        self._prepared = False
        self._noise: dict[str, Features] = {}
        self._baselines: dict[tuple[str, str], dict[str, Any]] = {}
        self._real: dict[tuple[str, str], Features] = {}
        self._trained: dict[str, Train] = {}
        given = experiment.evaluation.reference
        self._statistics = None if given in real.SPLITS else real.foreign(Path(given))

    def prepare(self, stop: StopRequest) -> None:
        """Takes features of real data and of noise, and what these score, once, on all processes together.

        Before anything is sampled, so that what cannot be scored against these data is said first, by UserError.
        """
        if self._prepared:  # which all processes know, as they do not know the figures
            return
        self._prepared = True
        wanted: dict[str, int] = {}  # images of noise
        for metric, name in self.pairs():
            split = self._split(metric)
            if split is None:
                _check_same(self._statistics, self.extractors[name])
                continue
            for each in (split, "train") if METRICS[metric].needs_train else (split,):
                if (name, each) not in self._real:
                    self._real[name, each] = real.features(self._experiment, self.extractors[name], each, stop)
            n = part_size(len(real.records_of(self._experiment, split)), self._size)
            wanted[name] = max(n, wanted.get(name, 0))
        for name, count in wanted.items():
            self._noise[name] = real.noise(self._experiment, self.extractors[name], count, stop)
        with together():
            for metric, name in self.pairs() if jax.process_index() == 0 else ():
                if self._split(metric) is not None:
                    self._baselines[metric, name] = self._baseline(metric, name)

    def _split(self, metric: str) -> str | None:
        """That samples are compared with by this metric; None for statistics without samples."""
        if METRICS[metric].needs_train:
            return "test"
        return self._experiment.evaluation.reference if self._statistics is None else None

    def _halves(self, metric: str, name: str) -> Halves:
        train = self._train(name) if METRICS[metric].needs_train else None
        return Halves.of(self._real[name, self._split(metric) or ""], self._size, self._experiment.metrics, train)

    def _baseline(self, metric: str, name: str) -> dict[str, Any]:
        """What does not depend on samples: n, and what real data and noise score."""
        halves = self._halves(metric, name)
        noise = halves.score(metric, take(self._noise[name], slice(halves.size)))
        return {"n": halves.size, "real": halves.floor(metric)._asdict(), "noise": noise._asdict()}

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
        told: dict[str, Any] = {
            "title": extractor.title(metric),
            "better": row.better,
            "metric": metric,
            "extractor": extractor.description,
            "against": self._against(metric),
        }
        own = {sampler: found[name] for sampler, found in samples.items()}
        split = self._split(metric)
        if split is None:
            told |= {"n": None, "real": _nothing(), "noise": _nothing()}
            for sampler, found in own.items():
                told[sampler] = _nothing() | {"whole": _of_gaussians(metric, found, self._statistics)}
            return told
        reference, halves = self._real[name, split], self._halves(metric, name)
        train = halves.train
        of_train = None if train is None else len(train.features)
        records = {"reference": len(reference.features), "train": of_train, "": None}[row.against]
        scores = {sampler: halves.score(metric, found) for sampler, found in own.items()}
        told |= self._baselines[metric, name]
        for sampler, features in own.items():
            value = score(metric, features, reference, settings, train)
            around = interval(metric, value, features, reference, settings, train)
            whole = {"value": value.value, "error": value.error, "n": len(features.features)}
            whole |= {"records": records}
            if around is not None:
                whole |= {"low": around.low, "high": around.high, "interval_n": around.n}
            told[sampler] = scores[sampler]._asdict() | {"whole": whole}
        return told

    def _against(self, metric: str) -> str:
        """What samples are compared with by this metric, "" for nothing."""
        if METRICS[metric].against == "reference":
            return self._split(metric) or self._experiment.evaluation.reference
        return METRICS[metric].against

    def _train(self, name: str) -> Train:
        if name not in self._trained:
            records = self._experiment.train_records
            labels = whole(records, "label") if "label" in records.fields else None
            self._trained[name] = Train(self._real[name, "train"].features, labels)
        return self._trained[name]


def line(row: dict[str, Any], name: str) -> str:
    """A metric's figures of the samples `name`, beside the floor, with all that they depend on, as text."""
    whole, floor = row[name]["whole"], row["real"]["value"]
    error = f" ± {whole['error']:.2g}" if whole["error"] else ""
    if whole["error"] == 0:  # of a share of 0 or 1
        error = f" in [{whole['low']:.2g}, {whole['high']:.2g}]"
    value = row[name]["value"]
    own = "" if value is None else f": {value:.4g}"
    beside = "" if floor is None else f"; at n = {row['n']}{own}, real data {floor:.4g}"
    compared = f" against {whole['records'] or 'the statistics'} of {row['against']}" if row["against"] else ""
    of = f"{whole['n']} samples{compared}"
    return f"{row['title']} {whole['value']:.4g}{error}, {of} ({row['better']} is better{beside}) {row['extractor']}"


def at_equal_n(row: dict[str, Any], name: str) -> tuple[float | None, int]:
    """The value of the samples `name` that stands beside the floor, None where they are too few, and its n; without a
    floor that of all samples."""
    if row["real"]["value"] is not None:
        return row[name]["value"], row["n"]
    return row[name]["whole"]["value"], row[name]["whole"]["n"]


def classes(experiment: Experiment, extractor: Extractor, found: Sampled) -> dict[str, Any] | None:
    """How many samples a classifier sees in each class, and how often the one asked for; None unless it has learnt
    from these very training data."""
    probabilities = found.features[extractor.name].probabilities
    if probabilities is None or extractor.learnt_from != experiment.train_records.fingerprint:
        return None
    seen = probabilities.argmax(axis=1)
    asked = found.label >= 0
    right = float((seen == found.label)[asked].mean()) if asked.any() else None
    return {"histogram": np.bincount(seen, minlength=extractor.classes).tolist(), "accuracy": right}


def pairs(experiment: Experiment, known: dict[str, int]) -> list[tuple[str, str]]:
    """Each metric with each extractor, of which `known` has the number of classes, that it can be taken with."""
    able = lambda metric, name: known[name] > 0 or not METRICS[metric].needs_probabilities
    return [(metric, name) for metric in experiment.evaluation.metrics for name in known if able(metric, name)]


def check(experiment: Experiment, size: int) -> None:
    """Raises UserError where a metric lacks what it needs: samples, real records, labels, or a classifier.

    size: how many samples of each sampler, or images of a folder, there will be.
    """
    evaluation, told = experiment.evaluation, any(each.CLASSES for each in experiment.extractors.values())
    needs = {"labels": "label" in experiment.train_records.fields, "train": len(experiment.train_records)}
    with Checks() as check:
        if evaluation.reference not in real.SPLITS:
            dim = len(real.foreign(Path(evaluation.reference)).gaussian.mean)
            for name, settings in experiment.extractors.items():
                own = settings.DIM or math.prod(experiment.source.shape)
                features = f"mu and sigma are of {dim} features, {name} has {own}"
                check.that(dim == own, f"evaluation.reference: {features}")
        for metric in evaluation.metrics:
            row = METRICS[metric]
            if evaluation.reference not in real.SPLITS and not row.needs_train:
                of_gaussians = row.of_gaussians is not None
                check.that(of_gaussians, f"evaluation.metrics: {metric!r} needs real data, not mu and sigma alone")
                continue
            records = len(real.records_of(experiment, "test" if row.needs_train else evaluation.reference))
            sizes = {"records": records, "size": size}
            check_halves(check, "evaluation.metrics", metric, experiment.metrics, **sizes, probabilities=told, **needs)


def _check_same(known: real.Statistics | None, extractor: Extractor) -> None:
    assert known is not None  # where there is no split
    if known.extractor not in (None, extractor.fingerprint):
        raise UserError(f"evaluation.reference: mu and sigma are of another extractor than {extractor.description}")


def _of_gaussians(metric: str, found: Features, known: real.Statistics | None) -> dict[str, Any]:
    compare = METRICS[metric].of_gaussians
    assert known is not None  # where there is no split
    assert compare is not None  # checked before
    value = compare(Moments.of(found.features).gaussian(), known.gaussian)
    return {"value": value, "error": None, "n": len(found.features), "records": None}


def _nothing() -> dict[str, Any]:
    return Score(None, None)._asdict()
