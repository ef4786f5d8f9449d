"""Work in batches that can be interrupted: each batch's result is kept in a file until all are done."""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_sde.distributed.processes import from_first, wait_for_all
from score_sde.errors import RunFailed
from score_sde.training.interrupt import StopRequest
from score_sde.writers import Progress, read_arrays, say, write_arrays

Arrays = dict[str, Any]  # of NumPy arrays
POLL_SECONDS = 1.0


def run_batches(
    name: str, folder: Path, fingerprint: str, count: int, compute: Callable[[int], Arrays], stop: StopRequest
) -> list[Arrays]:
    """compute(0), …, compute(count − 1), those already in `folder` read instead of computed.

    Results made under another fingerprint are discarded. Raises Interrupted between two batches after a signal.
    The caller removes the folder by `discard` once what it makes of the results is on disk.
    """
    current = folder / fingerprint
    if jax.process_index() == 0:
        current.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != current:
                discard(other)
    wait_for_all(f"batches of {name}")
    progress = Progress(name, count, done=sum(1 for _ in current.glob("[0-9]*.npz")), unit="batches")
    results = []
    try:
        for number in range(count):
            file = current / f"{number:06d}.npz"
            stop.check()
            stored = read_shared(file)
            if stored is not None:
                results.append(stored)
                continue
            arrays = compute(number)
            if jax.process_index() == 0:
                write_arrays(file, arrays)
            results.append(arrays)
            progress.advance()
    finally:
        progress.close()
    return results


@contextlib.contextmanager
def alone(file: Path, name: str, stop: StopRequest) -> Iterator[None]:
    """A block in which no other run holds the lock `file`, which is there meanwhile; waits for one that does.

    A run that dies lets go of it. On storage without locks nothing is waited for.
    """
    handle, waits = None, False
    try:
        while True:
            if jax.process_index() == 0:
                handle = _locked(file)
            if from_first(np.asarray(handle is not None)):
                break
            if not waits:
                say(f"{name}: another run is at it; waits for that")
            waits = True
            stop.check()
            time.sleep(POLL_SECONDS)
        yield
    finally:
        if handle is not None:
            file.unlink(missing_ok=True)
            os.close(handle)


def _locked(file: Path) -> int | None:
    """Its handle, None where another run holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.exists() and file.stat().st_ino == os.fstat(handle).st_ino:  # and not one that was removed meanwhile
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # such storage has no locks
        return handle
    os.close(handle)
    return None


def read_shared(path: Path) -> Arrays | None:
    """The arrays in a file that process 0 wrote, None where it finds none: the same on every process."""
    arrays = read_arrays(path)
    if not from_first(np.asarray(arrays is not None)):
        return None
    arrays = read_arrays(path) if arrays is None else arrays
    if arrays is None:
        raise RunFailed(
            f"{path} is there for process 0 but not here: the workdir must be on storage that all hosts share"
        )
    return arrays


def discard(folder: Path) -> None:
    """Removes what `run_batches` kept."""
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
