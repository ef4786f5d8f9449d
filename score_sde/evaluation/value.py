"""A metric's value."""

from typing import NamedTuple


class Value(NamedTuple):
    """error: the standard error of `value`, found as its metric says; None where it has none of its own."""

    value: float
    error: float | None = None
