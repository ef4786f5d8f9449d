"""Records that are read and decoded when they are asked for, and held in memory where all of them are small."""

import abc
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from score_sde.data.decoding import DamagedImage
from score_sde.data.source import Batch, InMemory, Records
from score_sde.errors import RunFailed, UserError

HELD = 2**28  # bytes of a part that is held in memory
SAMPLED = 1000  # records whose content is part of a fingerprint
FIELDS = ("image", "label")
NAMED = 5  # of damaged records, in a message


class OnDemand(abc.ABC):
    """Abstract: a frozen dataclass of all that it takes to read any record, so that it can be sent to other processes.

    labelled: whether there is a field `label`. dtype: of the images.
    """

    labelled: bool
    dtype: np.dtype = np.dtype(np.uint8)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str: ...

    @abc.abstractmethod
    def image(self, number: int) -> tuple[Shaped[np.ndarray, "*shape"], int]:
        """A record's image and label, 0 where there are none. Raises DamagedImage."""

    @abc.abstractmethod
    def label(self, number: int) -> int:
        """A record's label alone. Raises DamagedImage where that has to be read."""

    @abc.abstractmethod
    def name(self, number: int) -> str:
        """What a record is called."""

    @property
    def fields(self) -> tuple[str, ...]:
        return FIELDS if self.labelled else FIELDS[:1]

    def gather(self, index: Int[np.ndarray, "batch"], fields: Sequence[str] | None = None) -> Batch:
        """See `Records`. Raises RunFailed that names the record which is damaged."""
        wanted = self.fields if fields is None else fields
        batch: Batch = {name: [] for name in wanted}
        for number in map(int, index):
            try:
                record = self.image(number) if "image" in wanted else (None, self.label(number))
            except DamagedImage as error:
                raise RunFailed(f"data: {self.name(number)}: {error}") from error
            for name in wanted:
                batch[name].append(record[FIELDS.index(name)])
        return {name: np.asarray(values, np.int32 if name == "label" else self.dtype) for name, values in batch.items()}


def held_if_small(records: OnDemand, shape: tuple[int, ...]) -> Records:
    """The records, in memory where their images take no more than `HELD` bytes.

    Raises UserError that names those which are damaged, where it reads them.
    """
    count = len(records)
    if count * int(np.prod(shape)) * records.dtype.itemsize > HELD:
        return records
    images, labels = np.zeros((count, *shape), records.dtype), np.zeros(count, np.int32)
    damaged = []
    for number in range(count):
        try:
            images[number], labels[number] = records.image(number)
        except DamagedImage as error:
            damaged.append(f"{records.name(number)}: {error}")
    if damaged:
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise UserError(
            f"data: {len(damaged)} of {count} records cannot be used: {'; '.join(damaged[:NAMED])}{more}; take them "
            "out, or have scripts/prepare_dataset leave them out"
        )
    return InMemory({"image": images} | ({"label": labels} if records.labelled else {}))


def sampled(count: int) -> list[int]:
    """The numbers, spread evenly, of the records whose content is part of a fingerprint: all, of not too many."""
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)).tolist()
