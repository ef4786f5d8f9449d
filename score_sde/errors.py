"""The exceptions that end a run with one clear line: bad input (exit status 2), and work that failed (1)."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 15


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what would be right."""


class RunFailed(Exception):
    """Work that began and cannot go on, such as a diverged training. Its message is one line; what was done is kept."""


def closest(name: object, valid: Iterable[str]) -> str:
    """`did you mean 'x'?`, and the list of what is valid unless it is long and something comes close."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    meant = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    listed = "" if near and len(names) > MOST_NAMES else f"valid: {', '.join(names)}"
    return " ".join(part for part in (meant, listed) if part)


class Checks:
    """Collects what is wrong with one thing, so that all of it is named at once.

        with Checks() as check:
            check.that(x > 0, f"x must be positive, not {x}")

    raises UserError at the end of the block if anything was.
    """

    def __init__(self) -> None:
        self._problems: list[str] = []

    def that(self, holds: bool, problem: str) -> None:
        """Notes `problem` unless `holds`."""
        if not holds:
            self._problems.append(problem)

    def name(self, kind: str, name: object, valid: Iterable[str]) -> None:
        """Notes a `name` that is not one of `valid`."""
        names = list(valid)
        self.that(name in names, f"unknown {kind} {name!r} ({closest(name, names)})")

    def __enter__(self) -> "Checks":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._problems:
            raise UserError("; ".join(self._problems))
