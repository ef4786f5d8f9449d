r"""Fréchet distance between Gaussians fitted to two sets of features (lower is better).

    d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^{1/2} Σ₂ Σ₁^{1/2})^{1/2})
       = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 ‖R₁ R₂ᵀ‖_*,   Σ = RᵀR

The last trace is the sum of the singular values of R₁ R₂ᵀ: real, and without the root of an eigenvalue that rounding
made 1e-16 where it is 0, which with n < dim samples there are many of.

Of samples R is made without their covariance: it is the samples, less their mean, over √(n − 1), or of more samples
than features the triangular factor of that. So nothing of dim × dim is needed where n ≤ dim, and pixels of large images
have a distance, too. The error is rounding, about 1e-13 of the traces: for equal sets it may be negative by as much.

Of a covariance that is given R is of the eigenvectors whose eigenvalues are above rounding, dim · 2⁻⁵² of the largest.
Roots of what lies below are lost: up to √(dim · 2⁻⁵²) of the traces, 1e-6, where the other covariance is large there.

It is biased upward by
about c/n (Chong & Forsyth, "Effectively unbiased FID and Inception score", 2020), so it is compared at equal n alone,
and has no standard error of its own: `intervals.over_parts` has one.

Source: Dowson & Landau 1982; as a quality measure of generators: Heusel et al. 2017 (there with Inception features;
only that is called FID).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.evaluation.distances import BLOCK, Rows
from score_sde.evaluation.moments import Gaussian

NEGATIVE = 1e-5  # of the largest eigenvalue: what a covariance stored in float32 may have below 0


def frechet_distance(a: Rows, b: Float[np.ndarray, "m dim"]) -> float:
    """d² between the two sets, of at least two rows each."""
    return _distance(_of_rows(a), _of_rows(b))


def between_gaussians(a: Gaussian, b: Gaussian) -> float:
    """d² between two Gaussians; UserError where a covariance is none."""
    return _distance(_of_gaussian(a), _of_gaussian(b))


class _Rooted(NamedTuple):
    """A Gaussian. root: R, with Σ = RᵀR. trace: of Σ."""

    mean: Float[np.ndarray, "dim"]
    root: Float[np.ndarray, "rank dim"]
    trace: float


def _of_rows(rows: Rows) -> _Rooted:
    n, dim = rows.shape
    if n < 2:
        raise UserError(f"a covariance needs at least 2 samples, not {n}")
    mean = rows.mean(axis=0, dtype=np.float64)
    factor, size = np.empty((0, dim)), max(BLOCK, 4 * dim)
    for start in range(0, n, size):
        factor = np.concatenate([factor, (rows[start : start + size] - mean) / np.sqrt(n - 1)])
        if len(factor) > dim:
            factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return _Rooted(mean, factor, (factor**2).sum())


def _of_gaussian(gaussian: Gaussian) -> _Rooted:
    return _Rooted(gaussian.mean, root(gaussian.covariance), np.trace(gaussian.covariance))


def _distance(a: _Rooted, b: _Rooted) -> float:
    cross = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return float(((a.mean - b.mean) ** 2).sum() + a.trace + b.trace - 2 * cross)


def root(covariance: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "rank dim"]:
    """R, with Σ = RᵀR. Raises UserError where Σ is no covariance."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    largest = np.abs(values).max()
    if values[0] < -NEGATIVE * largest:
        raise UserError(f"not a covariance: an eigenvalue is {values[0]:.3g}, the largest {largest:.3g}")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return (vectors[:, kept] * np.sqrt(values[kept])).T
