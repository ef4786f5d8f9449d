r"""Inception score (higher is better): how sure a classifier is of each image, and how many classes there are in all.

    exp( mean_x KL( p(y given x) ‖ p(y) ) ),   p(y) = mean_x p(y given x)

From 1 to the number of classes. It knows nothing of the real data. Rows are shuffled, lest samples in the order of
their labels make splits of few classes, and cut into splits of as equal sizes as there are; the value is the mean
over splits, the standard error their standard deviation over √splits (published tables give the deviation itself). A
split of n images scores lower than more images would, by the bias of p(y) from n.

Source: Salimans et al., "Improved techniques for training GANs", 2016 (there with the 2015 Inception network's 1008
outputs).
"""

import numpy as np
from jaxtyping import Float
from scipy.special import rel_entr

from score_sde.evaluation.value import Value


def inception_score(probabilities: Float[np.ndarray, "n classes"], *, splits: int, seed: int) -> Value:
    """Of at least as many rows as splits."""
    order = np.random.default_rng(seed).permutation(len(probabilities))
    values = [_score(probabilities[part].astype(np.float64)) for part in np.array_split(order, splits)]
    return Value(float(np.mean(values)), float(np.std(values, ddof=1)) / splits**0.5 if splits > 1 else None)


def _score(given: Float[np.ndarray, "n classes"]) -> float:
    divergence = rel_entr(given, given.mean(axis=0)).sum(axis=1)  # p log(p/q), 0 where p = 0
    return float(np.exp(divergence.mean()))
