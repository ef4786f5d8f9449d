"""Euclidean distances and nearest neighbours, block by block: n rows need no n × n memory. In float64.

    |a − b|² = |a|² + |b|² − 2 a·b,   exact where the values are small integers; else its rounding is of |a|² + |b|²,
                                      at most 2 (d + 2) 2⁻⁵² of it

with b's first row as the origin, so that nothing is lost where all lie far from 0. Where rounding would decide,
distances are taken again as differences: those that `nearest` returns, so that a copy lies at exactly 0, and in
`within` those of pairs on the border.
"""

import hashlib
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 2048

Rows = Float[np.ndarray, "n dim"]


class Neighbours(NamedTuple):
    """Of each query, nearest first: the distance and the number of the row; of equals the first row comes first."""

    distance: Float[np.ndarray, "n count"]
    row: Int[np.ndarray, "n count"]


class RowSet:
    """Rows, equal to others of the same content: what a cache may be keyed by, without keeping them in memory."""

    def __init__(self, rows: Rows) -> None:
        self._rows = weakref.ref(rows)
        self.content = (rows.shape, rows.dtype.str, hashlib.blake2b(rows.tobytes()).digest())

    @property
    def rows(self) -> Rows:
        """While whoever asks for something of them holds them."""
        rows = self._rows()
        assert rows is not None
        return rows

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowSet) and self.content == other.content


def blocks(count: int) -> Iterator[slice]:
    """Stretches of at most `BLOCK` that make up `count` rows."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def _from_first(a: Rows, b: Float[np.ndarray, "m dim"]) -> tuple[Rows, Float[np.ndarray, "m dim"]]:
    """Both in float64, with b's first row as the origin."""
    origin = b[0].astype(np.float64)
    return a - origin, b - origin


def squared(a: Rows, b: Float[np.ndarray, "m dim"]) -> Float[np.ndarray, "n m"]:
    """All squared distances, of one block each."""
    a, b = _from_first(a, b)
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(square, 0)


def within(
    square: Float[np.ndarray, "n m"], a: Rows, b: Float[np.ndarray, "m dim"], radius: Float[np.ndarray, "#n #m"]
) -> Bool[np.ndarray, "n m"]:
    """Whether |a − b| ≤ radius, of all pairs of one block each. square: of `squared`."""
    largest = sum((each**2).sum(axis=1).max() for each in _from_first(a, b))
    rounding = 2 * (a.shape[1] + 2) * np.finfo(np.float64).eps * largest
    found = square <= radius**2 + rounding
    row, column = np.nonzero(found & (square >= radius**2 - rounding))
    found[row, column] = _differences(a, b, row, column) <= np.broadcast_to(radius, square.shape)[row, column]
    return found


def _differences(a: Rows, b: Rows, row: Int[np.ndarray, "k"], column: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """|a_row − b_column| of each pair; where they are many, equal ones once: they may be copies of few rows."""
    if len(row) > BLOCK:
        (a, own), (b, other) = (np.unique(rows, axis=0, return_inverse=True) for rows in (a, b))
        pairs, place = np.unique(own[row] * len(b) + other[column], return_inverse=True)
        return _differences_of(a, b, *np.divmod(pairs, len(b)))[place]
    return _differences_of(a, b, row, column)


def _differences_of(
    a: Rows, b: Rows, row: Int[np.ndarray, "k"], column: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    found = [_difference(a[row[part]], b[column[part]]) for part in blocks(len(row))]
    return np.concatenate([np.empty(0), *found])


def nearest(queries: Rows, rows: Float[np.ndarray, "m dim"], count: int, *, of_others: bool = False) -> Neighbours:
    """The `count` nearest rows of each query; of_others: queries are the rows, and none is its own neighbour."""
    found = [_nearest(queries[part], rows, count, part.start if of_others else None) for part in blocks(len(queries))]
    return Neighbours(*(np.concatenate(each) for each in zip(*found, strict=True)))


def _nearest(queries: Rows, rows: Float[np.ndarray, "m dim"], count: int, own: int | None) -> Neighbours:
    """Of one block; own: the row that the first query is, the next is the next one."""
    square, index = np.empty((len(queries), 0)), np.empty((len(queries), 0), int)
    for part in blocks(len(rows)):
        new, number = squared(queries, rows[part]), np.arange(part.start, part.stop)
        if own is not None:
            new[number == own + np.arange(len(queries))[:, None]] = np.inf
        square = np.concatenate([square, new], axis=1)
        index = np.concatenate([index, np.broadcast_to(number, new.shape)], axis=1)
        kept = _smallest(square, count)
        square, index = np.take_along_axis(square, kept, axis=1), np.take_along_axis(index, kept, axis=1)
    distance = np.stack([_difference(queries, rows[column]) for column in index.T], axis=1)
    order = np.argsort(distance, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(distance, order, axis=1), np.take_along_axis(index, order, axis=1))


def _difference(a: Rows, b: Rows) -> Float[np.ndarray, "n"]:
    return np.sqrt(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum(axis=1))


def _smallest(values: Float[np.ndarray, "n m"], count: int) -> Int[np.ndarray, "n count"]:
    """The columns of each row's smallest values, in order; as a stable sort gives them, without sorting the rest."""
    count = min(count, values.shape[1])
    bound = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    row, column = np.nonzero(values <= bound)
    order = np.lexsort((column, values[row, column], row))
    first = np.searchsorted(row, np.arange(len(values)))
    return column[order[first[:, None] + np.arange(count)]]
