"""What an extractor makes of images, and what metrics take."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Features(NamedTuple):
    """features: float32, one row an image. probabilities: of the extractor's own classifier, if it has one."""

    features: Float[np.ndarray, "n dim"]
    probabilities: Float[np.ndarray, "n classes"] | None = None
