"""SIGTERM and Ctrl-C as a request to stop at the next safe point; a second Ctrl-C stops at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType

EXIT_STATUS = 75  # EX_TEMPFAIL: everything is saved; the same command goes on from there


class Interrupted(Exception):
    """Raised at a safe point after a signal, with everything saved."""


class StopRequest:
    """Context in which the signals only set a flag. `check()` at a safe point raises `Interrupted` if one came.

    Several processes stop together: a signal to one of them is known to all at the same call of `due`, which every
    process therefore makes at the same points of its work.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._agreement: Callable[[int], bool] | None = None
        self._calls = 0

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree_by(self, agreement: Callable[[int], bool] | None) -> None:
        """agreement(n) at the n-th call of `due`: whether this is where all processes stop; None for one process.

        Whoever made it listens for SIGTERM in our place, and is told of a signal that came before.
        """
        self._agreement = agreement
        if agreement is not None and self.requested:
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        notice = f"\n{self.requested}: finishing the current step or batch; once more to stop at once\n"
        os.write(2, notice.encode())  # print is not safe in a signal handler
        signal.signal(number, self._previous[signal.Signals(number)])
        if self._agreement is not None and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # the one that is listened for

    def due(self) -> str | None:
        """The signal's name where it is time to stop."""
        if self._agreement is None:
            return self.requested
        self._calls += 1
        if self._agreement(self._calls):
            self.requested, self._agreement = self.requested or "SIGTERM", None
            return self.requested
        return None

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        signal_name = self.due()
        if signal_name:
            raise Interrupted(signal_name)
