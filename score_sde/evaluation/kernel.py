r"""Kernel distance, KID: the squared MMD with a polynomial kernel (lower is better; negative values are right).

    k(x, y) = (x·y/d + 1)³,   d the number of features

Unlike the Fréchet distance it is unbiased at every n. `kernel_distance` is over all samples, each pair once, with the
standard error of `mmd`. `over_subsets` is as published: the mean over random subsets of both sets, each without
repetition. Given the samples, a subset's value has the mean of `kernel_distance`, so that the variance is

    Var(over all samples) + Var(subset's value, given the samples)/subsets

The first term is taken from the subsets' own estimates of what `mmd` has in its variance, at the number of all
samples. The second alone, which is what is often printed, is no error of the distance: it vanishes where a subset is
all samples.

Source: Bińkowski, Sutherland, Arbel & Gretton, "Demystifying MMD GANs", 2018, sec. 4 (with Inception features; only
that is called KID).
"""

import numpy as np
from jaxtyping import Float

from score_sde.evaluation.distances import Rows
from score_sde.evaluation.mmd import Estimate, estimate, two_sample
from score_sde.evaluation.value import Value


def polynomial(x: Rows, y: Rows) -> Float[np.ndarray, "n m"]:
    """k, of all pairs of one block each."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def kernel_distance(generated: Rows, reference: Rows) -> Value:
    """Over all samples."""
    return two_sample(polynomial, generated, reference)


def over_subsets(generated: Rows, reference: Rows, *, subsets: int, size: int, seed: int) -> Value:
    """As published, of at least 2 subsets; size: at most that of the smaller set, and at least `mmd.LEAST`."""
    draw = np.random.default_rng(seed)
    size = min(size, len(generated), len(reference))
    part = lambda rows: rows[draw.choice(len(rows), size, replace=False)]
    each = np.array([estimate(polynomial, part(generated), part(reference)) for _ in range(subsets)])
    mean, between = Estimate(*each.mean(axis=0).tolist()), float(each[:, 0].var(ddof=1))
    return Value(mean.value, (mean.variance(len(generated), len(reference)) + between / subsets) ** 0.5)
