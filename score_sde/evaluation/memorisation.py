r"""Memorisation: how near samples come to the training data, beside how near test data come.

    d₁(x), d₂(x)   distances of x to its nearest and second-nearest training record, among features
    share          of generated samples with d₁ below the 5 % quantile of d₁ of test data
    copies         of generated samples with d₁ < d₂/3

A generator of the data's law has a share of 5 % (lower is better; blurred or bad samples have 0, so it says nothing
of quality). A share above it: samples nearer to training data than unseen data are. Distances in features are not
copies for the eye: look at the records that it names. d₁/d₂ finds copies of single records only; one that is twice in
the training data is its own second-nearest.

The standard error of the share is by bootstrap over the generated and the test samples' distances, the training data
being given.

Source: Carlini et al., "Extracting training data from diffusion models", 2023; Yoon, Choi, Kwon & Ryu, "Diffusion
probabilistic models generalize when they fail to memorize", 2023, for d₂/3; the baseline of test data: Meehan,
Chaudhuri & Dasgupta, "A non-parametric test to detect data-copying in generative models", 2020.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from score_sde.evaluation.distances import Neighbours, Rows, RowSet, nearest
from score_sde.evaluation.intervals import bootstrap_error
from score_sde.evaluation.value import Value

QUANTILE = 0.05
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)  # of the distances, for tables
COPY = 1 / 3


class Memorisation(NamedTuple):
    """share: see above. copies, test_copies: of generated and of test samples. distance, test_distance: d₁ of each.
    ratio: d₁/d₂ of each generated sample, 1 where both are 0. record: the number of the nearest training record."""

    share: Value
    copies: float
    test_copies: float
    distance: Float[np.ndarray, "n"]
    test_distance: Float[np.ndarray, "m"]
    ratio: Float[np.ndarray, "n"]
    record: Int[np.ndarray, "n"]

    def quantiles(self) -> dict[float, tuple[float, float]]:
        """Quantile to d₁ of generated and of test samples."""
        both = (np.quantile(self.distance, QUANTILES), np.quantile(self.test_distance, QUANTILES))
        return {q: (float(own), float(test)) for q, own, test in zip(QUANTILES, *both, strict=True)}


def memorisation(generated: Rows, test: Rows, train: Rows, seed: int = 0) -> Memorisation:
    """Of two training records or more."""
    own, record = _two_nearest(RowSet(generated), RowSet(train))
    real, _ = _two_nearest(RowSet(test), RowSet(train))
    error = bootstrap_error(_share, own[:, 0], real[:, 0], seed=seed)
    share = Value(_share(own[:, 0], real[:, 0]), error)
    ratio, test_ratio = _ratio(own), _ratio(real)
    copies, test_copies = float((ratio < COPY).mean()), float((test_ratio < COPY).mean())
    return Memorisation(share, copies, test_copies, own[:, 0], real[:, 0], ratio, record[:, 0])


@functools.lru_cache(maxsize=64)
def _two_nearest(rows: RowSet, train: RowSet) -> Neighbours:
    """Remembered, since test data are compared with again and again."""
    return nearest(rows.rows, train.rows, 2)


def _share(distance: Float[np.ndarray, "n"], test_distance: Float[np.ndarray, "m"]) -> float:
    return float((distance < np.quantile(test_distance, QUANTILE)).mean())


def _ratio(distance: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n"]:
    """d₁/d₂."""
    first, second = distance.T
    return np.divide(first, second, out=np.ones(len(first)), where=second > 0)
