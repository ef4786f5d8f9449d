r"""Standard errors and confidence intervals of figures that have none in closed form.

`bootstrap_error` draws rows with replacement. It is right for means, shares and quantiles of numbers that each sample
has by itself. It is wrong where samples are compared with one another: a repeated sample is its own nearest
neighbour, has k(x, x) in a kernel's mean, and adds no rank to a covariance, so that the resampled figures lie
elsewhere than the figure (`docs/evaluation.md` has how far).

`over_parts` is of the values of disjoint parts of both sets, which are independent. It is right for every metric, but
the figure is that of samples of the parts' size: a metric that depends on n is to be compared at that n.

`wilson` is of shares, of which `normal` leaves [0, 1] near its ends and has no width at all at 0 and 1.

Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993; Wilson, "Probable inference, the law of
succession, and statistical inference", 1927.
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


def wilson(share: float, error: float, n: int) -> Interval:
    r"""Of a share among n samples: all p that the share is within 1.96 √(p (1 − p)/m) of.

    m is the number of independent samples that has this standard error, share (1 − share)/error², at most n, and n
    where the error is 0.
    """
    m = min(n, share * (1 - share) / error**2) if error else n
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    centre = (share + z**2 / (2 * m)) / (1 + z**2 / m)
    reach = z / (1 + z**2 / m) * (share * (1 - share) / m + (z / (2 * m)) ** 2) ** 0.5
    return Interval(share, error, max(0.0, centre - reach), min(1.0, centre + reach), n)


def over_parts(values: Sequence[float], n: int) -> Interval:
    """The mean of a metric's values of at least two disjoint parts of n samples, by Student's t."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / count**0.5
    return _interval(float(np.mean(values)), error, float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)), n)


def _interval(value: float, error: float, reach: float, n: int) -> Interval:
    return Interval(value, error, value - reach * error, value + reach * error, n)
