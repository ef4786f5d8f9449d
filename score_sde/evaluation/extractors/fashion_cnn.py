"""`fashion_cnn`: a small classifier of Fashion-MNIST, trained here in some minutes. For images like those alone.

features: 128. probabilities: of the 10 classes; they also tell whether a sample is of the class that was asked for.
"""

import dataclasses
from typing import ClassVar

from jax.sharding import Mesh

from score_sde.data import FashionMNIST
from score_sde.evaluation.extractors.base import Extractor
from score_sde.evaluation.extractors.trained import Training, check_shape
from score_sde.models.small_cnn import SmallCNN
from score_sde.training.image_classifier import Recipe

NETWORK = SmallCNN(channels=(16, 32), features=128)
RECIPE = Recipe(epochs=8, shift=0, flip=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionCNN:
    """directory: where the four files of Fashion-MNIST are, see `data.fashion_mnist`."""

    CLASSES: ClassVar[int] = NETWORK.classes
    DIM: ClassVar[int] = NETWORK.features

    directory: str = FashionMNIST.directory

    def check(self, shape: tuple[int, ...]) -> None:
        """See `base.Settings.check`."""
        check_shape("fashion_cnn", FashionMNIST(directory=self.directory), shape)

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""
        source = FashionMNIST(directory=self.directory)
        training = Training(name="fashion_cnn", source=source, network=NETWORK, recipe=RECIPE)
        return training.extractor(shape, levels, mesh)
