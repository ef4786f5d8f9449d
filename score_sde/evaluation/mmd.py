r"""Squared maximum mean discrepancy, unbiased, with its standard error (lower is better; negative values are right).

    MMD²  = E k(x, x') + E k(y, y') − 2 E k(x, y)
    MMD²̂ = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j)

Its variance has two kinds of terms, exactly (Hoeffding), since no term of the estimate has more than two samples in
it:

    Var MMD²̂ = 4 Var g(x)/m + 4 Var g(y)/n + 2 ζ_xx/(m(m−1)) + 2 ζ_yy/(n(n−1)) + 4 ζ_xy/(mn)
    g(x) = E k(x, x') − E k(x, y);   ζ = E k̃², k̃ the kernel less its means over either argument

The first two vanish for equal laws, where the rest is all there is. Each Var g and ζ is estimated without bias from
the row sums and the sum of squares of the kernel's matrix, which is never held whole, and is taken as 0 where
negative.

`mmd` has a mean of Gaussian kernels, k = mean_s exp(−|x − y|²/(2 (s ℓ)²)), s = ¼, ½, 1, 2, 4. ℓ² is the median
squared distance between reference samples (at most 1000, evenly taken), so that it is the same for all that is scored
on them.

Source: Gretton et al., "A kernel two-sample test", 2012, lemma 6 and sec. 8; the unbiased ζ is U-centring, Székely &
Rizzo, "Partial distance correlation with methods for dissimilarities", 2014; mixed bandwidths: Li, Swersky & Zemel
2015.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.evaluation.distances import Rows, blocks, squared
from score_sde.evaluation.value import Value

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
BANDWIDTH_ROWS = 1000
LEAST = 4  # samples of each set: the value needs two, its error more

Kernel = Callable[[Rows, Rows], Float[np.ndarray, "n m"]]


class _Sums(NamedTuple):
    """Of a kernel's matrix, less its diagonal where it is of one set: over each row, over each column, of squares."""

    rows: Float[np.ndarray, "n"]
    columns: Float[np.ndarray, "m"]
    squares: float


class Estimate(NamedTuple):
    """MMD²̂, and unbiased estimates of Var g(x), Var g(y), ζ_xx, ζ_yy and ζ_xy."""

    value: float
    var_x: float
    var_y: float
    zeta_xx: float
    zeta_yy: float
    zeta_xy: float

    def variance(self, m: int, n: int) -> float:
        """Of MMD²̂ for m and n samples."""
        var_x, var_y, xx, yy, xy = (max(term, 0.0) for term in self[1:])
        return 4 * var_x / m + 4 * var_y / n + 2 * xx / (m * (m - 1)) + 2 * yy / (n * (n - 1)) + 4 * xy / (m * n)


def mmd(generated: Rows, reference: Rows) -> Value:
    """With the Gaussian kernels."""
    return two_sample(gaussians(bandwidth(reference)), generated, reference)


def bandwidth(rows: Rows) -> float:
    """ℓ; UserError where most rows are equal."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), BANDWIDTH_ROWS)).astype(int)]
    median = float(np.median(squared(some, some)[np.triu_indices(len(some), 1)]))
    if not median > 0:
        raise UserError("more than half of the reference's pairs of samples are equal: a kernel has no bandwidth there")
    return median**0.5


def gaussians(length: float) -> Kernel:
    """The mean of the kernels with bandwidths s · length."""

    def kernel(x: Rows, y: Rows) -> Float[np.ndarray, "n m"]:
        square = squared(x, y) / (2 * length**2)
        total = np.zeros(square.shape)
        for scale in SCALES:
            total += np.exp(-square / scale**2)
        return total / len(SCALES)

    return kernel


def two_sample(kernel: Kernel, x: Rows, y: Rows) -> Value:
    """MMD²̂ and its standard error; of at least `LEAST` rows each."""
    found = estimate(kernel, x, y)
    return Value(found.value, found.variance(len(x), len(y)) ** 0.5)


def estimate(kernel: Kernel, x: Rows, y: Rows) -> Estimate:
    """MMD²̂ and the terms of its variance; of at least `LEAST` rows each."""
    xx, yy, xy = _within(kernel, x), _within(kernel, y), _between(kernel, x, y)
    m, n = len(x), len(y)
    value = xx.rows.mean() / (m - 1) + yy.rows.mean() / (n - 1) - 2 * xy.rows.mean() / n
    zeta_xx, zeta_yy, zeta_xy = _zeta_within(xx), _zeta_within(yy), _zeta_between(xy)
    # m − 2, not m − 1: less its mean, a row's mean over the others is (m − 2)/(m − 1) of its projection, and noise.
    g_x, g_y = xx.rows / (m - 2) - xy.rows / n, yy.rows / (n - 2) - xy.columns / m
    var_x = g_x.var(ddof=1) - zeta_xx / (m - 2) - zeta_xy / n
    var_y = g_y.var(ddof=1) - zeta_yy / (n - 2) - zeta_xy / m
    return Estimate(*map(float, (value, var_x, var_y, zeta_xx, zeta_yy, zeta_xy)))


def _within(kernel: Kernel, rows: Rows) -> _Sums:
    """Each pair of blocks once, the matrix being symmetric."""
    sums, squares = np.zeros(len(rows)), 0.0
    for a in blocks(len(rows)):
        for b in blocks(len(rows)):
            if b.start < a.start:
                continue
            part = kernel(rows[a].astype(np.float64), rows[b].astype(np.float64))
            if a == b:
                np.fill_diagonal(part, 0)
            else:
                sums[b] += part.sum(axis=0)
            sums[a] += part.sum(axis=1)
            squares += (1 if a == b else 2) * float((part**2).sum())
    return _Sums(sums, sums, squares)


def _between(kernel: Kernel, x: Rows, y: Rows) -> _Sums:
    rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
    for a in blocks(len(x)):
        for b in blocks(len(y)):
            part = kernel(x[a].astype(np.float64), y[b].astype(np.float64))
            rows[a] += part.sum(axis=1)
            columns[b] += part.sum(axis=0)
            squares += float((part**2).sum())
    return _Sums(rows, columns, squares)


def _zeta_within(sums: _Sums) -> float:
    """ζ from pairs i ≠ j of m samples, unbiased.

    With A the variance of the projection, E[variance of all pairs] = 2A (m−2)/m + ζ (1 − 2/(m(m−1))) and
    E[sample variance of the row means] = ((m−2) A + ζ) (m−2)/(m−1)²; A is eliminated.
    """
    m = len(sums.rows)
    means = sums.rows / (m - 1)
    pairs = sums.squares / (m * (m - 1)) - means.mean() ** 2
    row = means.var(ddof=1) * (m - 1) ** 2 / (m - 2)
    return float(pairs - 2 * row / m) * (m - 1) / (m - 3)


def _zeta_between(sums: _Sums) -> float:
    """ζ from the table of m × n pairs: what two-way analysis of variance leaves."""
    m, n = len(sums.rows), len(sums.columns)
    rows, columns = sums.rows / n, sums.columns / m
    total = sums.squares - m * n * rows.mean() ** 2
    return float(total - m * n * (rows.var() + columns.var())) / ((m - 1) * (n - 1))
