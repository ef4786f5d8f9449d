"""Metrics to TensorBoard and JSON lines, and progress to the terminal; the only place that imports a writer.

Only process 0 writes.
"""

import collections
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX
from jaxtyping import UInt8
from tqdm import tqdm

from score_sde.errors import DAMAGED_NPZ, RunFailed, room_for


def say(line: str) -> None:
    """A line for the user on standard output; above a progress bar, if one is shown."""
    if jax.process_index() == 0:
        try:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has left (`| head`): the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """write(temporary file), then renames it to `path`: a kill leaves the old file or the new one, nothing between.

    Raises RunFailed where the disk is full.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with room_for(path):
            write(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | np.generic]) -> None:
    """An `.npz` file, atomically."""
    contents: dict[str, Any] = dict(arrays)
    write_atomically(path, lambda temporary: np.savez(temporary, **contents))


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote, or None where there is no such file or it is damaged. Pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except DAMAGED_NPZ:
        return None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; those cut short or not made by `MetricWriter` are passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int | float):
            lines.append(line)
    return lines


class MetricWriter:
    """Scalars and images by step, to `metrics.jsonl` and TensorBoard events in `directory`."""

    def __init__(self, directory: Path, resumed_at: int) -> None:
        """Lines logged after step `resumed_at` by a run that was killed are dropped: they will be made again."""
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = path = directory / "metrics.jsonl"
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= resumed_at)
        write_atomically(path, lambda temporary: temporary.write_text(kept))
        self._lines = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(directory), purge_step=resumed_at + 1 if resumed_at else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line, and one event per value. Raises RunFailed where the disk is full."""
        if not self._active:
            return
        with room_for(self._path):
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "height width channels"]) -> None:
        """One picture, to TensorBoard."""
        if self._active:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if not self._active:
            return
        events = self._events.file_writer.event_writer
        try:
            with room_for(self._path):
                self._lines.close()
                self._events.close()
        except RunFailed:  # tensorboardX would try again when the interpreter ends, and print tracebacks
            if events._worker.is_alive():
                events._worker.stop()
            events._closed = True
            raise


class Progress:
    """A bar with ETA on a terminal; elsewhere plain lines, at most one in `every` seconds and one at the end."""

    def __init__(self, name: str, total: int, *, done: int = 0, unit: str = "steps", every: float = 10.0) -> None:
        self._name, self._total, self._done, self._unit, self._every = name, total, done, unit, every
        self._start = self._last_line = time.monotonic()
        self._marks = collections.deque([(self._start, done)], maxlen=5)  # the rate is that of the last few lines
        self._bar = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, file=sys.stderr, dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= self._every:
            self.line()

    def line(self, note: str = "") -> None:
        """What is done, how fast, how long still, and `note`: beside the bar, or as a line."""
        if self._bar is not None:
            self._bar.set_postfix_str(note)
            return
        now = time.monotonic()
        self._last_line = now
        since, count = self._marks[0]
        rate = (self._done - count) / max(now - since, 1e-9)
        self._marks.append((now, self._done))
        remaining = "?" if rate == 0 else tqdm.format_interval((self._total - self._done) / rate)
        about = f"{self._done}/{self._total} {self._unit}, {rate:.2f}/s, {remaining} left"
        say(f"{self._name}: {about}{', ' if note else ''}{note}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
