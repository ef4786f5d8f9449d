r"""Mean and covariance of rows that come in parts. In float64.

    S = Σ (x − m)(x − m)ᵀ,   Σ = S/(n − 1)

    of two parts a and b, with δ = m_b − m_a and n = n_a + n_b:
    m = m_a + δ n_b/n,   S = S_a + S_b + δ δᵀ n_a n_b/n

No difference of near-equal sums is taken, so features far from 0 lose nothing. Parts that are merged in the same
order give the same bits.

Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.evaluation.distances import Rows, blocks


class Gaussian(NamedTuple):
    """What the Fréchet distance compares, and all that other projects' statistics hold: `mu` and `sigma`."""

    mean: Float[np.ndarray, "dim"]
    covariance: Float[np.ndarray, "dim dim"]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """count: n. mean: m. scatter: S."""

    count: int
    mean: Float[np.ndarray, "dim"]
    scatter: Float[np.ndarray, "dim dim"]

    @staticmethod
    def of(rows: Rows) -> "Moments":
        """Of at least one row."""
        mean = rows.mean(axis=0, dtype=np.float64)
        scatter = np.zeros((len(mean), len(mean)))
        for part in blocks(len(rows)):
            deviation = rows[part] - mean
            scatter += deviation.T @ deviation
        return Moments(len(rows), mean, scatter)

    def merge(self, other: "Moments") -> "Moments":
        """Of this one's rows and the other's together."""
        count, change = self.count + other.count, other.mean - self.mean
        between = np.outer(change, change) * (self.count * other.count / count)
        mean = self.mean + change * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @staticmethod
    def merged(parts: Iterable["Moments"]) -> "Moments":
        """Of all parts, in their order, two of them in memory at a time."""
        return functools.reduce(Moments.merge, parts)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; UserError for fewer than two rows."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, not {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1))
