"""Sample quality against the test split. To add a metric: a file that computes it, and its line in `METRICS`.

Images are quantised as the data are, mapped to [0, 1] and flattened. The test split is cut into two parts A and B
of n images each; a set of n images scores the mean of its scores against A and against B. Real test data score
A against B and B against A: the floor (or ceiling) at the same n, on the same references.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from score_sde.data import Records
from score_sde.evaluation.frechet import frechet_distance
from score_sde.evaluation.recognition import Recogniser

Images = Float[np.ndarray, "n dim"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The real data that images are scored against: the test split's two parts, and the labelled training split."""

    parts: tuple[Images, Images]
    train: Records
    levels: int

    @functools.cached_property
    def recogniser(self) -> Recogniser:
        """Fitted when first asked for; needs labels."""
        return Recogniser.fit(as_unit(self.train.arrays["image"], self.levels), self.train.arrays["label"])

    @staticmethod
    def of(train: Records, test: Records, levels: int, size: int) -> "Reference":
        """From the splits of a source; size: wanted images a part, at most half the test split."""
        images = as_unit(test.arrays["image"], levels)
        n = min(size, len(images) // 2)
        return Reference((images[:n], images[n : 2 * n]), train, levels)

    @property
    def size(self) -> int:
        """n, the number of images that are scored together."""
        return len(self.parts[0])


class Metric(NamedTuple):
    """title: for tables. better: "lower" or "higher". score(images, part, reference) of two sets of n images.
    needs_labels: whether the training split must have them."""

    title: str
    better: str
    score: Callable[[Images, Images, Reference], float]
    needs_labels: bool = False


def _recognition_rate(images: Images, part: Images, reference: Reference) -> float:
    return float(reference.recogniser.recognised(images).mean())


METRICS: dict[str, Metric] = {
    "frechet_pixels": Metric(
        "Fréchet distance (pixels)", "lower", lambda images, part, _: frechet_distance(images, part)
    ),
    "recognition": Metric("recognised as one digit", "higher", _recognition_rate, needs_labels=True),
}


class Score(NamedTuple):
    """value: the mean over sets of n images, None where there are fewer. spread: their standard deviation, None for
    a single set."""

    value: float | None
    spread: float | None


def as_unit(image: Integer[np.ndarray, "n *shape"], levels: int) -> Images:
    """Integer levels as float64 in [0, 1], one row an image."""
    return image.reshape(len(image), -1).astype(np.float64) / (levels - 1)


def score(metric: Metric, images: Images, reference: Reference) -> Score:
    """Of as many whole sets of n images as there are."""
    n = reference.size
    sets = [images[start : start + n] for start in range(0, len(images) - n + 1, n)]
    values = [np.mean([metric.score(one, part, reference) for part in reference.parts]) for one in sets]
    if not values:
        return Score(None, None)
    return Score(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def real_score(metric: Metric, reference: Reference) -> Score:
    """What real test data score: each part against the other."""
    a, b = reference.parts
    values = [metric.score(a, b, reference), metric.score(b, a, reference)]
    return Score(float(np.mean(values)), None)


def noise_images(shape: tuple[int, ...], levels: int, count: int) -> Integer[np.ndarray, "count *shape"]:
    """Pure noise: every pixel uniform over the levels."""
    return np.random.default_rng(0).integers(0, levels, (count, *shape), np.uint8)
