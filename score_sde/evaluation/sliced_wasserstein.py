r"""Sliced Wasserstein-2 distance between two sets (lower is better); for points and small images.

    √ E_θ W₂²(θ·x, θ·y),   in one dimension W₂² = ∫₀¹ (F⁻¹(u) − G⁻¹(u))² du, F⁻¹ the sorted values as steps

exact for sets of any two sizes. θ are `DIRECTIONS` uniform on the sphere, always the same, so that figures can be
compared; the mean over them stands for the one over all. It is biased upward at finite n, and has no standard error
of its own: `intervals.over_parts` has one.

Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015.
"""

import numpy as np
from jaxtyping import Float

from score_sde.evaluation.distances import Rows

DIRECTIONS = 128

Projected = Float[np.ndarray, "n directions"]


def sliced_wasserstein(a: Rows, b: Float[np.ndarray, "m dim"]) -> float:
    """The distance, not squared."""
    theta = directions(a.shape[1])
    return between_sorted(project(a, theta), project(b, theta))


def directions(dim: int) -> Float[np.ndarray, "dim directions"]:
    """θ, one a column."""
    normal = np.random.default_rng(0).normal(size=(dim, DIRECTIONS))
    return normal / np.linalg.norm(normal, axis=0)


def project(rows: Rows, theta: Float[np.ndarray, "dim directions"]) -> Projected:
    """The rows in each direction, sorted."""
    return np.sort(rows @ theta, axis=0)


def between_sorted(a: Projected, b: Float[np.ndarray, "m directions"]) -> float:
    """The distance between projected sets."""
    n, m = len(a), len(b)
    # Both quantile functions are constant between neighbouring ends, which are whole numbers in units of 1/(n m).
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    share = np.diff(ends, prepend=0) / (n * m)
    in_a, in_b = (ends - 1) // m, (ends - 1) // n
    square = [share @ (own[in_a] - other[in_b]) ** 2 for own, other in zip(a.T, b.T, strict=True)]
    return float(np.sqrt(np.mean(square)))
