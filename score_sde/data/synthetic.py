"""Images made of nothing but their numbers: for trying a config, a network or a machine where its data are not at hand.

Each image is a smooth random field of its own, with as many classes of base colours as `classes`. No result of it says
anything of a model; all that it shares with real data are the shapes.
"""

import dataclasses

import numpy as np

from score_sde.data.source import InMemory, Records, SquareImages
from score_sde.errors import Checks

COARSE = 4  # pixels of the random field a side, before it is drawn out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(SquareImages):
    """size: a multiple of 4. records: in the training part; a quarter of them, at least 1, are the test part."""

    records: int = 256

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_images(check)
            check.that(self.size % COARSE == 0, f"size must be a multiple of {COARSE}, not {self.size}")
            check.that(self.records >= 1, f"records must be at least 1, not {self.records}")

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, and `label` where there are classes."""
        count = {"train": self.records, "test": max(1, self.records // 4)}[name]
        generator = np.random.default_rng({"train": 0, "test": 1}[name])
        label = generator.integers(max(1, self.classes), size=count).astype(np.int32)
        base = np.random.default_rng(2).uniform(64, 192, (max(1, self.classes), 1, 1, self.channels))
        coarse = base[label] + generator.normal(0, 48, (count, COARSE, COARSE, self.channels))
        factor = self.size // COARSE
        image = np.clip(coarse, 0, 255).astype(np.uint8).repeat(factor, axis=1).repeat(factor, axis=2)
        return InMemory({"image": image} | ({"label": label} if self.classes else {}))
