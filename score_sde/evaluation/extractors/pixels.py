"""`pixels`: the pixels themselves, in [0, 1], flattened; of data without levels the values as they are. No classes."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from score_sde.evaluation.extractors.base import Extractor, Levels
from score_sde.evaluation.features import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Nothing to set."""

    CLASSES: ClassVar[int] = 0
    DIM: ClassVar[int] = 0
    LEARNS_FROM: ClassVar[type | None] = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Any will do."""

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""

        def compute(images: Levels) -> Features:
            flat = images.reshape(len(images), math.prod(shape))
            return Features((flat / (levels - 1 if levels else 1)).astype(np.float32), None)

        return Extractor(
            name="pixels",
            shape=shape,
            levels=levels,
            resolution=shape[:-1],
            resampling="",
            preprocessing="x/(levels - 1)" if levels else "",
            weights="",
            dim=math.prod(shape),
            classes=0,
            batch_size=1,
            compute=compute,
        )
