"""Sample quality, from features of samples and of real data. To add a metric: a file that computes it, and its line
in `METRICS`.

A value belongs to its metric, the features' extractor and n, and is compared with others of the same three alone.
What real data score at the same n is in `halves`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from score_sde.errors import Checks, UserError
from score_sde.evaluation import precision_recall
from score_sde.evaluation.distances import Rows
from score_sde.evaluation.features import Features
from score_sde.evaluation.frechet import between_gaussians, frechet_distance
from score_sde.evaluation.inception_score import inception_score
from score_sde.evaluation.intervals import Interval, normal, over_parts, wilson
from score_sde.evaluation.kernel import kernel_distance, over_subsets
from score_sde.evaluation.memorisation import memorisation
from score_sde.evaluation.mmd import LEAST as MMD_LEAST
from score_sde.evaluation.mmd import mmd
from score_sde.evaluation.moments import Gaussian
from score_sde.evaluation.recognition import NEIGHBOURS as RECOGNITION_NEIGHBOURS
from score_sde.evaluation.recognition import Recogniser
from score_sde.evaluation.sliced_wasserstein import sliced_wasserstein
from score_sde.evaluation.value import Value

PARTS = 10  # of an interval over parts
TRAIN_LEAST = RECOGNITION_NEIGHBOURS + 1  # training records that those metrics need that look at any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """kernel_subsets, kernel_subset_size: of the metric `kernel_subsets`, as published. inception_splits: of
    `inception_score`, as published. seed: of subsets, splits and resampling.
    """

    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    inception_splits: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.kernel_subsets >= 2, f"kernel_subsets must be at least 2, not {self.kernel_subsets}")
            size = self.kernel_subset_size
            check.that(size >= MMD_LEAST, f"kernel_subset_size must be at least {MMD_LEAST}, not {size}")
            check.that(self.inception_splits >= 1, f"inception_splits must be at least 1, not {self.inception_splits}")
            check.that(self.seed >= 0, f"seed must be at least 0, not {self.seed}")


@dataclasses.dataclass(frozen=True, eq=False)
class Train:
    """The training data: features, and labels where there are any."""

    features: Rows
    labels: Int[np.ndarray, "n"] | None = None

    @functools.cached_property
    def recogniser(self) -> Recogniser:
        """Fitted when first asked for; needs labels."""
        assert self.labels is not None
        return Recogniser.fit(self.features, self.labels)


class Metric(NamedTuple):
    """title: for tables. better: "lower" or "higher". score(generated, reference, settings, train), train being None
    where the metric does not need it. least: samples that each set must have. needs_…: the extractor's probabilities,
    the training data, and their labels. of_gaussians: the same from stored means and covariances, where these suffice.
    ranks: whether of two models the one with the better value is better by it, whatever else it does. share: whether
    the value is one of the samples. against: what it compares with: "reference", "train" or "", nothing.
    """

    title: str
    better: str
    score: Callable[[Features, Features, Settings, Train], Value]
    least: int = 2
    needs_probabilities: bool = False
    needs_train: bool = False
    needs_labels: bool = False
    of_gaussians: Callable[[Gaussian, Gaussian], float] | None = None
    ranks: bool = True
    share: bool = False
    against: Literal["reference", "train", ""] = "reference"


def _rows(score: Callable[[Rows, Rows], Value]) -> Callable[[Features, Features, Settings, Train], Value]:
    """A score that needs the features alone."""
    return lambda generated, reference, settings, train: score(generated.features, reference.features)


def _kernel_subsets(generated: Features, reference: Features, settings: Settings, train: Train) -> Value:
    count, size = settings.kernel_subsets, settings.kernel_subset_size
    return over_subsets(generated.features, reference.features, subsets=count, size=size, seed=settings.seed)


def _inception_score(generated: Features, reference: Features, settings: Settings, train: Train) -> Value:
    assert generated.probabilities is not None
    return inception_score(generated.probabilities, splits=settings.inception_splits, seed=settings.seed)


def _memorisation(generated: Features, reference: Features, settings: Settings, train: Train) -> Value:
    return memorisation(generated.features, reference.features, train.features, settings.seed).share


def _recognition(generated: Features, reference: Features, settings: Settings, train: Train) -> Value:
    recognised = train.recogniser.recognised(generated.features)
    return Value(float(recognised.mean()), float(recognised.std(ddof=1)) / len(recognised) ** 0.5)


def _balls(figure: str) -> Callable[[Features, Features, Settings, Train], Value]:
    return _rows(lambda generated, reference: Value(getattr(precision_recall.figures(generated, reference), figure)))


METRICS: dict[str, Metric] = {
    "frechet": Metric(
        *("Fréchet distance", "lower", _rows(lambda a, b: Value(frechet_distance(a, b)))),
        of_gaussians=between_gaussians,
    ),
    "kernel": Metric("kernel distance", "lower", _rows(kernel_distance), MMD_LEAST),
    "kernel_subsets": Metric("kernel distance over subsets", "lower", _kernel_subsets, MMD_LEAST),
    "inception_score": Metric("Inception score", "higher", _inception_score, needs_probabilities=True, against=""),
    "precision": Metric("precision", "higher", _balls("precision"), precision_recall.LEAST),
    "recall": Metric("recall", "higher", _balls("recall"), precision_recall.LEAST),
    "density": Metric("density", "higher", _balls("density"), precision_recall.LEAST),
    "coverage": Metric("coverage", "higher", _balls("coverage"), precision_recall.LEAST),
    "sliced_wasserstein": Metric(
        "sliced Wasserstein-2 distance", "lower", _rows(lambda a, b: Value(sliced_wasserstein(a, b)))
    ),
    "mmd": Metric("MMD², Gaussian kernels", "lower", _rows(mmd), MMD_LEAST),
    "memorisation": Metric(
        *("nearer to training data than 5 % of test data", "lower", _memorisation),
        needs_train=True,
        ranks=False,
        share=True,
    ),
    "recognition": Metric(
        *("recognised as one class", "higher", _recognition),
        needs_train=True,
        needs_labels=True,
        share=True,
        against="train",
    ),
}


def check_needs(
    check: Checks, where: str, name: str, settings: Settings, *, n: int, train: int, probabilities: bool, labels: bool
) -> None:
    """Notes what the metric `name` lacks; where: the setting that asks for it. n: samples that each set will have.
    train: how many training records, where it looks at them."""
    metric, splits = METRICS[name], settings.inception_splits
    check.that(n >= metric.least, f"{where}: {name!r} needs at least {metric.least} samples a set, not {n}")
    check.that(labels or not metric.needs_labels, f"{where}: {name!r} needs data with labels")
    some = train >= TRAIN_LEAST or not metric.needs_train
    check.that(some, f"{where}: {name!r} needs at least {TRAIN_LEAST} training records, not {train}")
    if metric.needs_probabilities:
        check.that(probabilities, f"{where}: {name!r} needs an extractor with a classifier")
        check.that(
            n >= splits,
            f"{where}: {name!r} over {splits} splits (metrics.inception_splits) needs as many samples a set, not {n}",
        )


def score(name: str, generated: Features, reference: Features, settings: Settings, train: Train | None = None) -> Value:
    """Of METRICS[name]; UserError where there is too little or something else than finite features of one extractor."""
    metric, n = METRICS[name], min(len(generated.features), len(reference.features))
    labels, probabilities = train is not None and train.labels is not None, generated.probabilities is not None
    records = 0 if train is None else len(train.features)
    with Checks() as check:
        check_needs(check, "metrics", name, settings, n=n, train=records, probabilities=probabilities, labels=labels)
        sets = {"generated": generated.features, "reference": reference.features}
        if train is not None and metric.needs_train:
            sets["training"] = train.features
        dims = sorted({rows.shape[1] for rows in sets.values()})
        check.that(len(dims) == 1, f"metrics: features of different sizes cannot be compared: {dims}")
        if metric.needs_probabilities and generated.probabilities is not None:
            sets["probabilities"] = generated.probabilities
        for which, rows in sets.items():
            wrong = int((~np.isfinite(rows).all(axis=1)).sum())
            check.that(not wrong, f"metrics: {wrong} of {len(rows)} {which} rows are not finite")
    found = metric.score(generated, reference, settings, train)  # type: ignore[arg-type]  # None where not needed
    if not np.isfinite([found.value, found.error or 0.0]).all():
        largest = max(float(np.abs(rows).max()) for rows in sets.values())
        raise UserError(f"metrics: {name!r} is beyond float64 for features as large as {largest:.3g}")
    return found


def interval(
    name: str, value: Value, generated: Features, reference: Features, settings: Settings, train: Train | None = None
) -> Interval | None:
    """95 %: of `value`, what the two sets score, from its own standard error; or else over `PARTS` disjoint parts of
    both sets, None where these would have fewer samples than the metric needs."""
    n = len(generated.features)
    if value.error is not None:
        return (wilson if METRICS[name].share else normal)(value.value, value.error, n)
    size, draw = min(n, len(reference.features)) // PARTS, np.random.default_rng(settings.seed)
    if size < METRICS[name].least:
        return None
    own, real = (draw.permutation(len(each.features))[: PARTS * size] for each in (generated, reference))
    parts = zip(np.split(own, PARTS), np.split(real, PARTS), strict=True)
    values = [score(name, take(generated, a), take(reference, b), settings, train).value for a, b in parts]
    return over_parts(values, size)


def take(features: Features, index: slice | Int[np.ndarray, "k"]) -> Features:
    """Some of the rows."""
    given = features.probabilities
    return Features(features.features[index], None if given is None else given[index])
