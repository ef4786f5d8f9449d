"""`fashion_cnn`: a small classifier of Fashion-MNIST, trained here in some minutes. For images like those alone.

features: 128. probabilities: of the 10 classes; they also tell whether a sample is of the class that was asked for.
"""

import dataclasses
from typing import ClassVar

from jax.sharding import Mesh

from score_sde.data import FashionMNIST
from score_sde.errors import UserError
from score_sde.evaluation.extractors.base import Extractor
from score_sde.evaluation.extractors.trained import Training, check_shape
from score_sde.models.small_cnn import SmallCNN
from score_sde.training.image_classifier import Recipe

NETWORK = SmallCNN(channels=(16, 32), features=128)
RECIPE = Recipe(epochs=8, shift=0, flip=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionCNN:
    """directory: where the four files of Fashion-MNIST are, see `data.fashion_mnist`; by default where they are taken
    from as data."""

    CLASSES: ClassVar[int] = NETWORK.classes
    DIM: ClassVar[int] = NETWORK.features
    LEARNS_FROM: ClassVar[type | None] = FashionMNIST

    directory: str = FashionMNIST.directory

    @property
    def _source(self) -> FashionMNIST:
        return FashionMNIST(directory=self.directory)

    def check(self, shape: tuple[int, ...]) -> None:
        """See `base.Settings.check`."""
        check_shape("fashion_cnn", self._source, shape)
        try:
            for part in ("train", "test"):
                self._source.split(part)
        except UserError as error:
            raise UserError(f"it learns from extractors.fashion_cnn.directory: {error}") from error

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""
        training = Training(name="fashion_cnn", source=self._source, network=NETWORK, recipe=RECIPE)
        return training.extractor(shape, levels, mesh)
