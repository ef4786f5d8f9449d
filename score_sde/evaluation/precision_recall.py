r"""Improved precision and recall, density and coverage (higher is better), in the balls around samples.

The ball of a sample has its k-th nearest other sample of its own set on its border, and its border belongs to it.

    precision  share of generated samples in the ball of any real sample           k = 3
    recall     share of real samples in the ball of any generated sample           k = 3
    density    balls of real samples that a generated one lies in, on average, /k  k = 5; about 1 for the data's law
    coverage   share of real samples whose ball has a generated sample in it       k = 5

Precision and density ask whether samples are like the data, recall and coverage whether all data are there. Precision
and recall count a ball around an outlier as they count any; density and coverage were made to weigh it less. All
depend on n, and density may exceed 1.

None has a standard error of its own: that of a share, the balls being given, leaves out that they are of samples,
too, and was measured to be 0.5 to 0.8 of the deviation between independent draws. `intervals.over_parts` has one.

Source: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019; Naeem et
al., "Reliable fidelity and diversity metrics for generative models", 2020.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.evaluation.distances import Rows, RowSet, blocks, nearest, squared, within

NEIGHBOURS = 3
NEIGHBOURS_DENSITY = 5
LEAST = NEIGHBOURS_DENSITY + 1  # samples of each set


class Figures(NamedTuple):
    """Of one pair of sets."""

    precision: float
    recall: float
    density: float
    coverage: float


def figures(generated: Rows, reference: Rows) -> Figures:
    """All four, of sets of at least `LEAST` rows; remembered, as are the balls, since the metrics ask for one each."""
    return _figures(RowSet(generated), RowSet(reference))


@functools.lru_cache(maxsize=1024)
def _figures(generated: RowSet, reference: RowSet) -> Figures:
    own, real = _radii(generated), _radii(reference)
    x, y = generated.rows, reference.rows
    n, m = len(x), len(y)
    precise, recalled, covered = np.zeros(n, bool), np.zeros(m, bool), np.zeros(m, bool)
    balls = np.zeros(n, int)
    for a in blocks(n):
        for b in blocks(m):
            square = squared(x[a], y[b])
            precise[a] |= within(square, x[a], y[b], real[None, b, 0]).any(axis=1)
            recalled[b] |= within(square, x[a], y[b], own[a, :1]).any(axis=0)
            inside = within(square, x[a], y[b], real[None, b, 1])
            balls[a] += inside.sum(axis=1)
            covered[b] |= inside.any(axis=0)
    density = balls.mean() / NEIGHBOURS_DENSITY
    return Figures(*(float(each) for each in (precise.mean(), recalled.mean(), density, covered.mean())))


@functools.lru_cache(maxsize=64)
def _radii(rows: RowSet) -> Float[np.ndarray, "n 2"]:
    """For both k."""
    distance = nearest(rows.rows, rows.rows, NEIGHBOURS_DENSITY, of_others=True).distance
    return distance[:, [NEIGHBOURS - 1, NEIGHBOURS_DENSITY - 1]]
