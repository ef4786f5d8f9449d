"""A config's argument, `--config=FILE:ARGUMENT`."""

from collections.abc import Iterable


def check(argument: str, valid: Iterable[str]) -> None:
    """Raises ValueError that names the valid ones."""
    if argument not in valid:
        raise ValueError(f"unknown variant {argument!r}; valid: {', '.join(valid)}")
