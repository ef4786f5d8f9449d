r"""Recognition rate: the share of images that look like one class of the training data (higher is better).

An image is recognised if its k = 5 nearest training images (Euclidean, among features) are all of one class and lie,
on average, no farther than 95 % of training images lie from their own 5 nearest others. Noise fails the second, a
blend of two digits the first. Real test images pass mostly, not always: their rate is the ceiling. The standard error
is that of a share, the training images being given.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from score_sde.evaluation.distances import nearest

NEIGHBOURS = 5
QUANTILE = 0.95


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """The training images `(n, dim)`, their classes `(n,)` and the largest admitted mean distance."""

    images: Float[np.ndarray, "n dim"]
    labels: Int[np.ndarray, "n"]
    threshold: float

    @staticmethod
    def fit(images: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, "n"]) -> "Recogniser":
        """From a training set of more than `NEIGHBOURS` images."""
        own = nearest(images, images, NEIGHBOURS, of_others=True).distance.mean(axis=1)
        return Recogniser(images, labels, float(np.quantile(own, QUANTILE)))

    def recognised(self, images: Float[np.ndarray, "batch dim"]) -> Bool[np.ndarray, "batch"]:
        """Which of `images` are recognised."""
        distance, row = nearest(images, self.images, NEIGHBOURS)
        classes = self.labels[row]
        return (classes == classes[:, :1]).all(axis=1) & (distance.mean(axis=1) <= self.threshold)
