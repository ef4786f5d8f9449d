"""The exceptions that end a run with one clear line: bad input (exit status 2), and work that failed (1)."""

import difflib
import errno
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_NAMES = 15
MOST_OF_A_PATH = 200  # characters of it that are shown
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what a user may have of it
# What NumPy raises of an .npz file that is damaged.
DAMAGED_NPZ: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, NotImplementedError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, where, and what would be right."""


class RunFailed(Exception):
    """Work that began and cannot go on, such as a diverged training. Its message is one line; what was done is kept."""


# The system's errors that end a run with one line: the storage fails, or a path is not what it must be.
OF_STORAGE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
OF_A_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
KINDS: dict[int | None, type[Exception]] = {
    **dict.fromkeys(OF_STORAGE, RunFailed),
    **dict.fromkeys(OF_A_PATH, UserError),
}


@contextmanager
def in_one_line() -> Iterator[None]:
    """A block, that of a whole program, in which the system's errors of `KINDS` become RunFailed or UserError.

    Any other passes as it is: it is a bug. Of a full disk `room_for` says more, and knows the path where the system
    does not.
    """
    try:
        yield
    except OSError as error:
        kind = KINDS.get(error.errno)
        if kind is None:
            raise
        path = error.filename2 or error.filename  # of a renaming, what the file was to be called
        raise kind(f"{_shown(path)}: {error.strerror}" if path else error.strerror) from error


def _shown(path: object) -> str:
    text = " ".join(str(path).split())
    return text if len(text) <= MOST_OF_A_PATH else f"{text[: MOST_OF_A_PATH // 2]}…{text[-MOST_OF_A_PATH // 2 :]}"


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """A block that writes `path`. Raises RunFailed where the disk that it is on is full."""
    try:
        yield
    except Exception as error:
        reason = _full(error)
        if not reason:
            raise
        disk = os.statvfs(next(parent for parent in path.absolute().parents if parent.is_dir()))
        left = f"{disk.f_bavail * disk.f_frsize / 2**20:.1f} MiB are left there"
        if disk.f_files and not disk.f_favail:
            left = "as many files are there as it can hold"
        raise RunFailed(
            f"{path} cannot be written: {reason} ({left}); make room, and the same command goes on from what is saved"
        ) from error


def _full(error: BaseException | None) -> str:
    """What the system says of a full disk, where that is what made an error; of libraries that wrap it, in its text."""
    while error is not None:
        for number in FULL:
            if (isinstance(error, OSError) and error.errno == number) or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


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
