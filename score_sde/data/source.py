"""What a data source is."""

import dataclasses
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Shaped

from score_sde.errors import Checks

Batch = dict[str, Any]  # `image` (batch, height, width, channels) of integer levels, optional `label` (batch,), …


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of a source, with random access. arrays: the batch's fields, each with a leading record axis."""

    arrays: dict[str, Shaped[np.ndarray, "records ..."]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def gather(self, index: Int[np.ndarray, "batch"]) -> Batch:
        """The records at `index`, as a batch."""
        return {name: array[index] for name, array in self.arrays.items()}


class Source(Protocol):
    """A row of `data.SOURCES`: a frozen dataclass of settings.

    shape: of one sample, (height, width, channels). levels: how many values a pixel takes. range: (low, high) that the
    levels are scaled to, see `data.levels`. classes: how many labels there are, 0 where there is no field `label`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def levels(self) -> int: ...

    @property
    def classes(self) -> int: ...

    @property
    def range(self) -> tuple[float, float]: ...

    def split(self, name: str) -> Records:
        """The records of "train" or "test"; the same ones at every call, on every machine."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquareImages:
    """Abstract: what sources of square images of 8 bits a colour have in common.

    size: of the sides. low, high: what the 256 levels are scaled to. classes: of the field `label`, 0 for none.
    """

    size: int = 32
    channels: int = 3
    classes: int = 0
    low: float = -1.0
    high: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, self.channels)

    @property
    def levels(self) -> int:
        return 256

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def check_images(self, check: Checks) -> None:
        """Notes what is wrong with these settings."""
        check.that(self.size >= 1, f"size must be at least 1, not {self.size}")
        check.that(self.channels >= 1, f"channels must be at least 1, not {self.channels}")
        check.that(self.classes >= 0, f"classes must be at least 0, not {self.classes}")
        check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")
