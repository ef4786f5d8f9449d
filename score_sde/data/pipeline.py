"""From records to batches: shuffle, repeat, batch, each process's part. Its state is one number.

Batches are made index first: of the number of a batch follow the numbers of its records, which are gathered at once.
The global order depends on the seed alone; each process gathers its rows of every global batch, and asks for no others.
A batch being a function of its number, it is the same whether it is gathered here or by a worker, and how many there
are.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from score_sde.data.source import Batch, Records

ENDLESS = 2**60  # batches
AHEAD = 2  # batches in the making or made, for each worker


class Order:
    """Which record stands where in the endless sequence of epochs, each a permutation of its own of them all.

    The order of an epoch is that of the first 64-bit words of Philox (Salmon et al., 2011) under the key (seed, epoch),
    which NumPy promises to be the same in every version. It is made whole, in O(n log n), and kept while it is used.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._epoch = functools.lru_cache(maxsize=2)(functools.partial(_permutation, count, seed))

    def __call__(self, place: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The numbers of the records at these places, counted from 0."""
        epoch, within = np.divmod(place, self._count)
        record = np.empty_like(place)
        for each in np.unique(epoch):
            here = epoch == each
            record[here] = self._epoch(int(each))[within[here]]
        return record


def _permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, "count"]:
    words = np.random.Philox(key=np.asarray([seed, epoch], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


def iterate(
    records: Records,
    batch_size: int,
    seed: int,
    rows: Int[np.ndarray, "own"] | slice = slice(None),
    fields: Sequence[str] | None = None,
    at_once: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator of this process's `rows` of each global batch of `batch_size`.

    Every epoch is a new permutation; a batch may span two epochs, so no record is ever dropped. Which records a batch
    has depends on the seed and its number alone, so another number of processes goes on where these stopped.

    fields: by default all. at_once: see `in_order`, for records in `InWorkers`.
    """
    order, own = Order(len(records), seed), np.arange(batch_size)[rows]
    return in_order(lambda number: records.gather(order(number * batch_size + own), fields), ENDLESS, at_once)


def in_order(compute: Callable[[int], Any], count: int, at_once: int) -> grain.DatasetIterator:
    """compute(0), …, compute(count − 1). at_once: how many threads compute them, ahead of their use, which is of use
    where they wait for workers; 0 computes each when it is asked for. Its state is the next one's number.
    """
    options = grain.ReadOptions(num_threads=at_once, prefetch_buffer_size=AHEAD * at_once)
    return iter(grain.MapDataset.range(count).map(compute).to_iter_dataset(options))


class Prefetched:
    """Batches put on the devices ahead of their use.

    `state` is that of the batch last returned, not of those fetched ahead: restoring it continues right after it.
    close: ends what makes the batches; called at the end of a `with` block.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator,
        put: Callable[[Batch], Any],
        ahead: int = 2,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._batches, self._put, self._ahead, self.close = batches, put, ahead, close
        self._queue: collections.deque[tuple[Any, Any]] = collections.deque()
        self.state: Any = batches.get_state()

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore(self, state: Any) -> None:
        """Goes on right after the batch at which `state` was taken."""
        self._batches.set_state(state)
        self._queue.clear()
        self.state = state

    def __next__(self) -> Any:
        while len(self._queue) < self._ahead:
            batch = self._put(next(self._batches))
            self._queue.append((batch, self._batches.get_state()))
        batch, self.state = self._queue.popleft()
        return batch
