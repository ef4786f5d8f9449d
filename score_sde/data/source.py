"""What a data source is."""

import dataclasses
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Shaped

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
