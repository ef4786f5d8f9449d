r"""Recognition rate: the share of images that look like one class of the training data (higher is better).

An image is recognised if its k = 5 nearest training images (Euclidean, in pixels) are all of one class and lie,
on average, no farther than 95 % of training images lie from their own 5 nearest others. Noise fails the second,
a blend of two digits the first. Real test images pass mostly, not always: their rate is the ceiling.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

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
        distance = _distances(images, images)
        np.fill_diagonal(distance, np.inf)
        own = np.sort(distance, axis=1)[:, :NEIGHBOURS].mean(axis=1)
        return Recogniser(images, labels, float(np.quantile(own, QUANTILE)))

    def recognised(self, images: Float[np.ndarray, "batch dim"]) -> Bool[np.ndarray, "batch"]:
        """Which of `images` are recognised."""
        distance = _distances(images, self.images)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
        mean = np.take_along_axis(distance, nearest, axis=1).mean(axis=1)
        classes = self.labels[nearest]
        return (classes == classes[:, :1]).all(axis=1) & (mean <= self.threshold)


def _distances(a: Float[np.ndarray, "n dim"], b: Float[np.ndarray, "m dim"]) -> Float[np.ndarray, "n m"]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.clip(square, 0, None))
