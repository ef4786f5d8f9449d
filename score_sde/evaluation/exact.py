r"""Distances of samples from a law that is known exactly. To add one: a function here and its line in
`EXACT_METRICS`.

    sliced_wasserstein   from many samples of the law
    frechet              Fréchet distance d² of the samples' mean and covariance from the exact ones

Neither is 0 for n samples of the law itself: what those have is the floor that samplers can reach.

Source: `sliced_wasserstein`, `frechet`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from score_sde.evaluation.distances import Rows
from score_sde.evaluation.frechet import between_gaussians
from score_sde.evaluation.moments import Gaussian, Moments
from score_sde.evaluation.sliced_wasserstein import Projected, between_sorted, directions, project


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """samples: many of the law, one a row. exact: its mean and covariance."""

    samples: Rows
    exact: Gaussian

    @functools.cached_property
    def projected(self) -> Projected:
        """The samples in each direction, sorted."""
        return project(self.samples, directions(self.samples.shape[1]))


class ExactMetric(NamedTuple):
    """title: for tables; lower is better. score: of samples, one a row."""

    title: str
    score: Callable[[Rows, Law], float]


def sliced_wasserstein(rows: Rows, law: Law) -> float:
    """The distance, not squared, with the law's samples in its place."""
    return between_sorted(project(rows, directions(rows.shape[1])), law.projected)


def frechet(rows: Rows, law: Law) -> float:
    """d² from the exact mean and covariance."""
    return between_gaussians(Moments.of(rows).gaussian(), law.exact)


EXACT_METRICS: dict[str, ExactMetric] = {
    "sliced_wasserstein": ExactMetric("sliced Wasserstein-2 distance", sliced_wasserstein),
    "frechet": ExactMetric("Fréchet distance (exact moments)", frechet),
}
