"""What training spends its time on: traces of chosen steps, and the figures in the log.

A trace is written to `profile/` in the workdir; of several processes each writes one of its own devices, to
`profile/process_N/`. TensorBoard (with its profile plugin) opens such a folder; `perfetto_trace.json.gz` in it opens in
https://ui.perfetto.dev.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from score_sde.distributed.processes import several
from score_sde.errors import Checks
from score_sde.writers import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """steps: the first and the last step of which a trace is made, none by default."""

    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        with Checks() as check:
            fits = not self.steps or (len(self.steps) == 2 and 1 <= self.steps[0] <= self.steps[1])
            given = ",".join(map(str, self.steps))
            check.that(fits, f"steps must be the first and the last step of the trace, such as 100,104, not {given}")


class Profiler:
    """Starts and stops the trace of a training run, which goes on where that fails.

    folder: where traces go. resumed_at: the step that the run begins after.
    """

    def __init__(self, settings: ProfileSettings, folder: Path, resumed_at: int = 0) -> None:
        self._first, self._last = settings.steps or (0, 0)
        self._folder = folder / f"process_{jax.process_index()}" if several() else folder
        self._running, self._began, self._done = False, 0, resumed_at
        if 0 < self._last <= resumed_at:
            say(f"train: no trace of steps {self._first} to {self._last}: the run goes on from step {resumed_at}")

    def before(self, done: int, count: int) -> None:
        """To be called before each call that does `count` steps after `done`."""
        if not self._running and self._first <= done + count and done < self._last:
            self._began = done + 1
            try:
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
                self._running = True
            except Exception as error:  # of the profiler, whatever it is
                self._failed(error)

    def after(self, done: int, result: Any) -> None:
        """To be called after each call, with what it gave; waits for that where the trace ends."""
        self._done = done
        if self._running and done >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # of the profiler, or of the disk
            self._failed(error)
        else:
            say(f"train: the trace of steps {self._began} to {self._done} is in {self._folder}")

    def _failed(self, error: Exception) -> None:
        self._last = 0  # once is enough
        reason = " ".join(str(error).split()) or repr(error)
        line = f"train: process {jax.process_index()} has no trace of steps from {self._began} on: {reason}"
        print(line, file=sys.stderr, flush=True)


class Clock:
    """How long steps take and how much of that the host waited for data, since the figures were last taken.

    batch_size: images a step. flops: of a step on all devices, and peak: what those can do in a second; 0 for unknown.
    """

    def __init__(self, *, batch_size: int, flops: float = 0.0, peak: float = 0.0) -> None:
        self._batch_size, self._flops, self._peak = batch_size, flops, peak
        self._restart()

    def _restart(self) -> None:
        self._start, self._data = time.monotonic(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is no training."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For data: the devices work on meanwhile, so this is the most that they may have been without."""
        start = time.monotonic()
        yield
        self._data += time.monotonic() - start

    def figures(self, steps: int) -> dict[str, float]:
        """Of so many steps. utilisation: the share of what the devices can do that the network's products are."""
        seconds = time.monotonic() - self._start
        found = {
            "steps_per_second": steps / seconds,
            "step_seconds": seconds / steps,
            "images_per_second": steps * self._batch_size / seconds,
            "data_wait_share": self._data / seconds,
        }
        if self._flops and self._peak:
            found["utilisation"] = self._flops * steps / seconds / self._peak
        self._restart()
        return found
