r"""Fréchet distance between Gaussians fitted to two sets of features (lower is better).

    d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁^{1/2} Σ₂ Σ₁^{1/2})^{1/2})

Source: Dowson & Landau 1982; as a quality measure of generators: Heusel et al. 2017 (there with Inception
features; only that is called FID). Here the features are the pixels. In float64.
"""

import numpy as np
from jaxtyping import Float

Mean = Float[np.ndarray, "dim"]
Covariance = Float[np.ndarray, "dim dim"]


def frechet_distance(a: Float[np.ndarray, "n_a dim"], b: Float[np.ndarray, "n_b dim"]) -> float:
    """d² between the two sets, of at least two rows each."""
    return between_gaussians(*moments(a), *moments(b))


def moments(rows: Float[np.ndarray, "n dim"]) -> tuple[Mean, Covariance]:
    """Mean and covariance of at least two rows."""
    return rows.mean(axis=0, dtype=np.float64), np.atleast_2d(np.cov(rows.astype(np.float64), rowvar=False))


def between_gaussians(mean_a: Mean, cov_a: Covariance, mean_b: Mean, cov_b: Covariance) -> float:
    """d² between two Gaussians."""
    root_a = _square_root(cov_a)
    # The trace of the root from the eigenvalues: real and non-negative, since the product is symmetric.
    eigenvalues = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _square_root(matrix: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, "dim dim"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
