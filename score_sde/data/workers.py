"""Processes that compute beside this one. They import no jax, touch no device, and end with the one that they serve.

Each has a connection to this process and answers one question at a time. What ends this process closes the connections,
SIGKILL too, and that is what a worker ends by. It ignores the signals by which a terminal or a scheduler, which send
them to every process of a job, ask the work to end: this process heeds them, and still needs its workers to do so.
"""

import atexit
import contextlib
import functools
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from jaxtyping import Int

from score_sde.data.source import Batch, Records
from score_sde.errors import RunFailed, UserError

ASK_TO_END = (signal.SIGINT, signal.SIGTERM)


class WorkerFailed(Exception):
    """An error that a worker's function is not known for; its message holds the worker's traceback."""


class Workers:
    """A function, computed by `count` processes. Whatever thread calls waits for the answer, so threads keep it busy.

    The function is pickled once for each process. A `UserError` or `RunFailed` that it raises is raised here; anything
    else as `WorkerFailed`. Raises RunFailed where a process is gone. To be closed after use.
    """

    def __init__(self, count: int, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # forks of a process that runs jax's threads may hang
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._processes: list[BaseProcess] = []
        atexit.register(self.close)
        try:
            with _signals_held():
                for _ in range(count):
                    here, there = context.Pipe()
                    process = context.Process(target=_serve, args=(there, function), daemon=True)
                    process.start()
                    there.close()
                    self._processes.append(process)
                    self._free.put(here)
        except BaseException:
            self.close()
            raise

    def __call__(self, argument: Any) -> Any:
        """function(argument)."""
        connection = self._free.get()
        try:
            connection.send(argument)
            outcome = connection.recv()
        except (EOFError, OSError) as error:
            raise RunFailed(
                "a worker process of the data pipeline ended unasked; most often it was killed for lack of memory"
            ) from error
        finally:
            self._free.put(connection)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Ends the processes, whatever they are at: there is nothing that they could leave half done."""
        atexit.unregister(self.close)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


class InWorkers:
    """Records that workers gather, `count` batches at once: for those that take time to read and decode.

    The records are pickled once for each worker. To be closed after use.
    """

    def __init__(self, records: Records, count: int) -> None:
        self._records, self._workers = records, Workers(count, functools.partial(_gathered, records))
        self.close = self._workers.close

    @property
    def fields(self) -> tuple[str, ...]:
        return self._records.fields

    @property
    def fingerprint(self) -> str:
        return self._records.fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def gather(self, index: Int[np.ndarray, "batch"], fields: Sequence[str] | None = None) -> Batch:
        """See `Records`. Raises RunFailed where one cannot be read."""
        batch: Batch = self._workers((index, fields))
        return batch


def _gathered(records: Records, asked: tuple[Int[np.ndarray, "batch"], Sequence[str] | None]) -> Batch:
    return records.gather(*asked)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes that are started meanwhile do not see the signals, also before they come to ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASK_TO_END)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answers until the other end is closed. What is asked, and what is answered, is never an exception."""
    for number in ASK_TO_END:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(function, connection.recv()))


def _answer(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except (UserError, RunFailed) as error:
        return error
    except Exception:  # of which not all can be pickled
        return WorkerFailed(f"in a worker process:\n{traceback.format_exc()}")
