"""What a data source is."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, Shaped

from score_sde.errors import Checks

# `image` (batch, height, width, channels) of integer levels, or whatever stands for it, optional `label` (batch,), …
Batch = dict[str, Any]


class Records(Protocol):
    """One split of a source, with random access. fields: of its batches.

    fingerprint: another one where the records are others, the same on every machine; what it is made of, each says.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def gather(self, index: Int[np.ndarray, "batch"], fields: Sequence[str] | None = None) -> Batch:
        """The records at `index`, in its order, as a batch of these fields, by default of all."""
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Records that are held in memory. arrays: the fields, each with a leading record axis. fingerprint: of their
    content."""

    arrays: dict[str, Shaped[np.ndarray, "records ..."]]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    @functools.cached_property
    def fingerprint(self) -> str:
        parts = [(name, array.dtype.str, array.shape, _bytes(array)) for name, array in sorted(self.arrays.items())]
        return digest("in memory", *(part for each in parts for part in each))

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def gather(self, index: Int[np.ndarray, "batch"], fields: Sequence[str] | None = None) -> Batch:
        """See `Records`."""
        return {name: self.arrays[name][index] for name in (self.fields if fields is None else fields)}


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of other records. number: of each among those."""

    records: Records
    number: Int[np.ndarray, "records"]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.records.fields

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest("subset", self.records.fingerprint, _bytes(self.number.astype("<i8")))

    def __len__(self) -> int:
        return len(self.number)

    def gather(self, index: Int[np.ndarray, "batch"], fields: Sequence[str] | None = None) -> Batch:
        """See `Records`."""
        return self.records.gather(self.number[index], fields)


def digest(*parts: object) -> str:
    """SHA-256 of the parts, bytes or what `str` says of them, each with its length; a file name need not be UTF-8."""
    return digest_of(parts)


def digest_of(parts: Iterable[object]) -> str:
    """The same of parts that are made one at a time."""
    sha = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes | memoryview) else str(part).encode(errors="surrogateescape")
        sha.update(len(content).to_bytes(8, "little"))
        sha.update(content)
    return sha.hexdigest()


def _bytes(array: Shaped[np.ndarray, "..."]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def whole(records: Records, field: str, first: int | None = None) -> Shaped[np.ndarray, "records ..."]:
    """One field of all records, or of the first so many."""
    count = len(records) if first is None else min(first, len(records))
    return records.gather(np.arange(count), (field,))[field]


class Source(Protocol):
    """A row of `data.SOURCES`: a frozen dataclass of settings. `ARGUMENT`, where it has one, is the setting that stands
    after the colon of data.source=NAME:ARGUMENT.

    shape: of one sample, (height, width, channels), (time, channels) or (dim,). levels: how many values a pixel takes,
    0 for values that are not quantised. range: (low, high) that the levels are scaled to, see `data.levels`. classes:
    how many labels there are, 0 where there is no field `label`.
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
