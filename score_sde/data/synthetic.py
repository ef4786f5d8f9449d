"""Images made of nothing but their numbers: for trying a config, a network or a machine where its data are not at hand.

Each image is a smooth random field of its own, with as many classes of base colours as `classes`. No result of it says
anything of a model; all that it shares with real data are the shapes.
"""

import dataclasses

import numpy as np

from score_sde.data.source import Records
from score_sde.errors import Checks

COARSE = 4  # pixels of the random field a side, before it is drawn out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic:
    """size: of an image's sides, a multiple of 4. records: in the training part; a quarter of them, at least 1, are the
    test part. low, high: what the 256 levels are scaled to."""

    size: int = 32
    channels: int = 3
    classes: int = 0
    records: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(
                self.size >= COARSE and self.size % COARSE == 0, f"size must be a multiple of 4, not {self.size}"
            )
            check.that(self.channels >= 1, f"channels must be at least 1, not {self.channels}")
            check.that(self.classes >= 0, f"classes must be at least 0, not {self.classes}")
            check.that(self.records >= 1, f"records must be at least 1, not {self.records}")
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, self.channels)

    @property
    def levels(self) -> int:
        return 256

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, and `label` where there are classes."""
        count = {"train": self.records, "test": max(1, self.records // 4)}[name]
        generator = np.random.default_rng({"train": 0, "test": 1}[name])
        label = generator.integers(max(1, self.classes), size=count).astype(np.int32)
        base = np.random.default_rng(2).uniform(64, 192, (max(1, self.classes), 1, 1, self.channels))
        coarse = base[label] + generator.normal(0, 48, (count, COARSE, COARSE, self.channels))
        factor = self.size // COARSE
        image = np.clip(coarse, 0, 255).astype(np.uint8).repeat(factor, axis=1).repeat(factor, axis=2)
        return Records({"image": image} | ({"label": label} if self.classes else {}))
