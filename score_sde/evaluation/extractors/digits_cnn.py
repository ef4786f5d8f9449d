"""`digits_cnn`: a small classifier of scikit-learn's digits, trained here in seconds. For images like them alone.

features: 64. probabilities: of the 10 digits; they also tell whether a sample shows the digit that was asked for.
"""

import dataclasses
from typing import ClassVar

from jax.sharding import Mesh

from score_sde.data import Digits
from score_sde.evaluation.extractors.base import Extractor
from score_sde.evaluation.extractors.trained import Training, check_shape
from score_sde.models.small_cnn import SmallCNN
from score_sde.training.image_classifier import Recipe

NETWORK = SmallCNN(channels=(32, 64), features=64)
RECIPE = Recipe(epochs=40, shift=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsCNN:
    """Nothing to set."""

    CLASSES: ClassVar[int] = NETWORK.classes
    DIM: ClassVar[int] = NETWORK.features
    LEARNS_FROM: ClassVar[type | None] = Digits

    def check(self, shape: tuple[int, ...]) -> None:
        """See `base.Settings.check`."""
        check_shape("digits_cnn", Digits(), shape)

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""
        training = Training(name="digits_cnn", source=Digits(), network=NETWORK, recipe=RECIPE)
        return training.extractor(shape, levels, mesh)
