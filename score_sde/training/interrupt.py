"""SIGTERM and Ctrl-C as a request to stop at the next safe point; a second Ctrl-C stops at once."""

import os
import signal
from types import FrameType

EXIT_STATUS = 75  # EX_TEMPFAIL: everything is saved; the same command goes on from there


class Interrupted(Exception):
    """Raised at a safe point after a signal, with everything saved."""


class StopRequest:
    """Context in which the signals only set a flag. `check()` at a safe point raises `Interrupted` if one came."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        notice = f"\n{self.requested}: finishing the current step or batch; once more to stop at once\n"
        os.write(2, notice.encode())  # print is not safe in a signal handler
        signal.signal(number, self._previous[signal.Signals(number)])

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.requested:
            raise Interrupted(self.requested)
