"""`inception`: the Inception-v3 of the FID. Only with its published weights is a Fréchet distance called FID.

The weights are a file of the user's, known by its SHA-256. pytorch-fid (`pt_inception-2015-12-05-6726825d.pth`) and
torch-fidelity (`weights-inception-2015-12-05-6726825d.pth`) offer the same bytes. Another file with the same tensors is
taken too, but its numbers are not called FID. The TorchScript archive of NVIDIA's, which clean-fid takes, holds the
same network, but as a program: it is not read.

features: 2048, for FID and KID. probabilities: of 1008 classes, from logits without bias, as for the Inception score.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from score_sde.errors import Checks, UserError
from score_sde.evaluation.extractors.base import Extractor, OverBatches, whole_batches
from score_sde.evaluation.resize import RESAMPLINGS, as_pixels, check_channels, coloured, resized
from score_sde.models import FeatureNetwork
from score_sde.models.inception import CLASSES, FEATURES, InceptionV3
from score_sde.pretrained.load import load
from score_sde.typing import Params
from score_sde.writers import say

SIDE = 299
KNOWN = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ADDRESS = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
CENTRE, SCALE = 128.0, 128.0
OF_FID = ("bicubic", "tensorflow1")  # clean-fid's resampling, and the original's
NETWORK = FeatureNetwork(InceptionV3(), (SIDE, SIDE, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inception:
    """file: of the weights. resampling: to 299×299; "bicubic" is clean-fid's, "tensorflow1" that of the original FID,
    with which most published numbers and statistics are made; with another one no distance is called FID. batch_size:
    images computed together."""

    CLASSES: ClassVar[int] = CLASSES
    DIM: ClassVar[int] = FEATURES
    LEARNS_FROM: ClassVar[type | None] = None

    file: str = ""
    resampling: str = "bicubic"
    batch_size: int = 32

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("resampling", self.resampling, RESAMPLINGS)
            check.that(1 <= self.batch_size <= 10**5, f"batch_size must lie in [1, 1e5], not {self.batch_size}")

    def check(self, shape: tuple[int, ...]) -> None:
        """See `base.Settings.check`."""
        check_channels("inception", shape)
        if not self.file:
            raise UserError(f"the extractor 'inception' needs extractors.inception.file, its weights: see {ADDRESS}")
        if not Path(self.file).is_file():
            raise UserError(f"extractors.inception.file: there is no file {self.file}")
        _weights(self.file)

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """See `base.Settings.build`."""
        self.check(shape)
        params, digest = _weights(self.file)
        if digest != KNOWN:
            say(f"inception: {self.file} is of SHA-256 {digest}, not {KNOWN}: its numbers are not called FID")

        def prepare(images: np.ndarray) -> np.ndarray:
            x = resized(coloured(as_pixels(images, levels)), (SIDE, SIDE), self.resampling)
            return (x - np.float32(CENTRE)) / np.float32(SCALE)

        size = whole_batches(mesh, self.batch_size)
        return Extractor(
            name="inception",
            shape=shape,
            levels=levels,
            resolution=(SIDE, SIDE),
            resampling=self.resampling,
            preprocessing=f"(x - {CENTRE})/{SCALE}, logits without bias",
            weights=digest,
            dim=FEATURES,
            classes=CLASSES,
            batch_size=size,
            compute=OverBatches(network=NETWORK, params=params, prepare=prepare, mesh=mesh, batch_size=size),
            is_fid=digest == KNOWN and self.resampling in OF_FID,
        )


@functools.lru_cache(maxsize=1)
def _weights(file: str) -> tuple[Params, str]:
    """The parameters in a file, and its SHA-256. Remembered, since they are checked long before they are used."""
    return load(Path(file), NETWORK).average, hashlib.sha256(Path(file).read_bytes()).hexdigest()
