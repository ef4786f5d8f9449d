"""The one exception that means "the user can mend this": one clear line, exit status 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what would be right."""


def closest(name: object, valid: Iterable[str]) -> str:
    """`did you mean 'x'? Valid: ...` for a name that is not one of `valid`."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    meant = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{meant}Valid: {', '.join(names)}"


def check_name(kind: str, name: object, valid: Iterable[str]) -> None:
    """Raises UserError unless `name` is one of `valid`."""
    names = list(valid)
    if name not in names:
        raise UserError(f"unknown {kind} {name!r}: {closest(name, names)}")
