r"""Standard errors and confidence intervals of figures that have none in closed form.

`bootstrap_error` draws rows with replacement. It is right for means, shares and quantiles of numbers that each sample
has by itself. It is wrong where samples are compared with one another: a repeated sample is its own nearest
neighbour, has k(x, x) in a kernel's mean, and adds no rank to a covariance, so that the resampled figures lie
elsewhere than the figure (`docs/evaluation.md` has how far).

`over_parts` is of the values of disjoint parts of both sets, which are independent. It is right for every metric, but
the figure is that of samples of the parts' size: a metric that depends on n is to be compared at that n.

Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from scipy import stats

RESAMPLES = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """value and its standard error; the ends of the 95 % interval; n: how many samples a set the value is of."""

    value: float
    error: float
    low: float
    high: float
    n: int


def bootstrap_error(statistic: Callable[..., float], *samples: Shaped[np.ndarray, "n ..."], seed: int = 0) -> float:
    """Standard deviation of statistic(*samples), each sample drawn anew from its own rows."""
    draw = np.random.default_rng(seed)
    again = lambda rows: rows[draw.integers(len(rows), size=len(rows))]
    return float(np.std([statistic(*map(again, samples)) for _ in range(RESAMPLES)], ddof=1))


def normal(value: float, error: float, n: int) -> Interval:
    """value ± 1.96 standard errors."""
    return _interval(value, error, float(stats.norm.ppf(0.5 + LEVEL / 2)), n)


def over_parts(values: Sequence[float], n: int) -> Interval:
    """The mean of a metric's values of at least two disjoint parts of n samples, by Student's t."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / count**0.5
    return _interval(float(np.mean(values)), error, float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)), n)


def _interval(value: float, error: float, reach: float, n: int) -> Interval:
    return Interval(value, error, value - reach * error, value + reach * error, n)
