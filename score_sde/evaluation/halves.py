"""Scores beside a floor at the same n: of samples against two disjoint parts of real data, and of the parts themselves.

Two parts A and B of n real records each are drawn by a seed; a set of n samples scores the mean of its scores against
A and against B. Real data score A against B and B against A: the floor (or ceiling) at the same n, on the same
references. n is the number of samples, or half the number of real records where that is less.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from score_sde.errors import Checks
from score_sde.evaluation import metrics
from score_sde.evaluation.features import Features
from score_sde.evaluation.metrics import METRICS, Settings, Train, check_needs, take


@dataclasses.dataclass(frozen=True, eq=False)
class Halves:
    """The two parts. train: the training data, for metrics that need them."""

    parts: tuple[Features, Features]
    settings: Settings
    train: Train | None = None

    @staticmethod
    def of(real: Features, size: int, settings: Settings, train: Train | None = None) -> "Halves":
        """From all real records; size: wanted samples a part."""
        n = part_size(len(real.features), size)
        order = np.random.default_rng(settings.seed).permutation(len(real.features))
        return Halves((take(real, order[:n]), take(real, order[n : 2 * n])), settings, train)

    @property
    def size(self) -> int:
        """n, the number of samples that are scored together."""
        return len(self.parts[0].features)

    def score(self, name: str, samples: Features) -> "Score":
        """Of as many whole sets of n samples as there are, by METRICS[name]."""
        n, count = self.size, len(samples.features)
        sets = [take(samples, slice(start, start + n)) for start in range(0, count - n + 1, n)]
        values = [np.mean([self._of(name, one, part) for part in self.parts]) for one in sets]
        if not values:
            return Score(None, None)
        return Score(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)

    def floor(self, name: str) -> "Score":
        """What real data score: each part against the other."""
        a, b = self.parts
        return Score(float(np.mean([self._of(name, a, b), self._of(name, b, a)])), None)

    def _of(self, name: str, samples: Features, part: Features) -> float:
        train = self.train if METRICS[name].needs_train else None
        return metrics.score(name, samples, part, self.settings, train).value


class Score(NamedTuple):
    """value: the mean over sets of n samples, None where there are fewer. spread: their standard deviation, None for
    a single set."""

    value: float | None
    spread: float | None


def part_size(records: int, size: int) -> int:
    """n, where `size` samples a part are wanted of so many real records."""
    return min(size, records // 2)


def check_halves(
    check: Checks, where: str, name: str, settings: Settings, *, records: int, size: int, **needs: Any
) -> None:
    """Notes what the metric `name` lacks between `size` samples and two halves of so many real records.

    where, and needs: the rest of what `metrics.check_needs` is told.
    """
    least = METRICS[name].least
    if size >= least > records // 2:
        halves = f"needs {least} real records in each of two halves, {2 * least} in all, not {records}"
        check.that(False, f"{where}: {name!r} {halves}")
    else:
        check_needs(check, where, name, settings, n=part_size(records, size), **needs)


def noise_images(shape: tuple[int, ...], levels: int, index: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n *shape"]:
    """Pure noise by number: every pixel uniform over the levels, or without levels, in float32, over [−1, 1)."""
    return np.stack([_noise(np.random.default_rng(number), shape, levels) for number in index.tolist()])


def _noise(generator: np.random.Generator, shape: tuple[int, ...], levels: int) -> Shaped[np.ndarray, "*shape"]:
    if not levels:
        return 2 * generator.random(shape, np.float32) - 1
    return generator.integers(0, levels, shape, np.min_scalar_type(levels - 1))
