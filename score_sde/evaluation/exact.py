r"""Distances of samples from a law that is known exactly. To add one: a function here and its line in `EXACT_METRICS`.

    sliced_wasserstein   √ E_θ W₂²(θ·x, θ·y), in each direction by the sorted values: W₂² = ∫ (F⁻¹ − G⁻¹)² du
    frechet              Fréchet distance d² of the samples' mean and covariance from the exact ones

Neither is 0 for n samples of the law itself: what those have is the floor that samplers can reach.

Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015; `frechet`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.evaluation.frechet import Covariance, Mean, between_gaussians, moments

DIRECTIONS = 128

Rows = Float[np.ndarray, "n dim"]


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """The law: many samples of it, one a row, and its exact mean and covariance."""

    samples: Rows
    mean: Mean
    covariance: Covariance

    @functools.cached_property
    def directions(self) -> Float[np.ndarray, "dim directions"]:
        """θ, uniform on the sphere, always the same."""
        normal = np.random.default_rng(0).normal(size=(self.samples.shape[1], DIRECTIONS))
        return normal / np.linalg.norm(normal, axis=0)

    @functools.cached_property
    def projected(self) -> Float[np.ndarray, "n directions"]:
        """The samples in each direction, sorted."""
        return np.sort(self.samples @ self.directions, axis=0)


class ExactMetric(NamedTuple):
    """title: for tables; lower is better. score: of samples, one a row."""

    title: str
    score: Callable[[Rows, Law], float]


def sliced_wasserstein(rows: Rows, law: Law) -> float:
    """The distance, not squared, with the law's samples in its place; no more rows than those."""
    own = np.sort(rows @ law.directions, axis=0)
    count = len(law.projected)
    same_share = np.arange(count) * len(own) // count  # of the law's i-th smallest value, the sample at its quantile
    return float(np.sqrt(np.mean((own[same_share] - law.projected) ** 2)))


def frechet(rows: Rows, law: Law) -> float:
    """d² from the exact mean and covariance."""
    return between_gaussians(*moments(rows), law.mean, law.covariance)


EXACT_METRICS: dict[str, ExactMetric] = {
    "sliced_wasserstein": ExactMetric("sliced Wasserstein-2 distance", sliced_wasserstein),
    "frechet": ExactMetric("Fréchet distance (exact moments)", frechet),
}
