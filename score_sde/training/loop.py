"""The training loop: evaluate, save, take the next batch, step. The only place in `training` with side effects."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from score_sde.checkpoint import Checkpoints
from score_sde.data.pipeline import Prefetched
from score_sde.distributed.mesh import put
from score_sde.errors import Checks, RunFailed
from score_sde.training.duration import Duration
from score_sde.training.ema import LONGEST
from score_sde.training.interrupt import Interrupted, StopRequest
from score_sde.training.profiling import Clock, Profiler
from score_sde.training.state import TrainState, Window
from score_sde.typing import Params
from score_sde.writers import MetricWriter, Progress, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings. ema_half_lives, ema_lengths: of the parameters' moving averages, one average each, exponential and by a
    power of the step (lengths in shares of the training so far, see `ema`); `evaluation.ema` chooses one, the former
    counted first. ema_snapshot_every: how often those with lengths are kept, for --mode=ema.
    label_drop: the share of labels hidden in training, for classifier-free guidance. flip: whether images are mirrored,
    left and right exchanged, half of the time. crop: by up to how many pixels each way images are moved at random, what
    comes in being reflected. augment: the probability of each transform of `data.augmentation`, which
    the network is told. keep_checkpoints: how many of the newest are kept; keep_every: those at its multiples are kept
    for ever, 0 for none; a multiple of save_every.

    accumulate: in how many parts, one after another, a step computes its batch: the same update in less memory.
    steps_per_call: how many steps are one call of a compiled program, where nothing is logged, shown or saved between
    them. The compiler rounds them differently from single ones, no more. A signal is heeded after the call.
    workers: how many processes beside each one of the job read and decode its records; 0 for none, which is best for
    those that are held in memory. The batches are the same for any number."""

    batch_size: int = 128
    accumulate: int = 1
    steps_per_call: int = 1
    workers: int = 0
    duration: Duration = Duration(1_300_000, "steps")
    ema_half_lives: tuple[Duration, ...] = (Duration(6931, "steps"),)  # d = 0.9999
    ema_lengths: tuple[float, ...] = ()
    ema_snapshot_every: Duration = Duration(10_000, "steps")
    label_drop: float = 0.0
    flip: bool = False
    crop: int = 0
    augment: float = 0.0
    log_every: Duration = Duration(50, "steps")
    sample_every: Duration = Duration(10_000, "steps")
    save_every: Duration = Duration(10_000, "steps")
    keep_checkpoints: int = 3
    keep_every: Duration = Duration(0, "steps")

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.batch_size <= 10**6, f"batch_size must lie in [1, 1e6], not {self.batch_size}")
            calls = 1 <= self.steps_per_call <= 10**4
            check.that(calls, f"steps_per_call must lie in [1, 1e4], not {self.steps_per_call}")
            check.that(0 <= self.workers <= 256, f"workers must lie in [0, 256], not {self.workers}")
            check.that(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")
            if self.accumulate >= 1 and self.batch_size % self.accumulate:
                near = max(1, round(self.batch_size / self.accumulate)) * self.accumulate
                parts = f"the {self.accumulate} parts of accumulate"
                check.that(False, f"batch_size={self.batch_size} is not divisible into {parts}; the nearest is {near}")
            check.that(self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, not {self.keep_checkpoints}")
            averages = len(self.ema_half_lives) + len(self.ema_lengths)
            check.that(averages > 0, "ema_half_lives or ema_lengths must name at least one average")
            for length in self.ema_lengths:
                check.that(0 < length <= LONGEST, f"ema_lengths must lie in (0, {LONGEST:.4f}], not {length}")
            once = len(set(self.ema_lengths)) == len(self.ema_lengths)
            check.that(once, f"ema_lengths must name each length once, not {self.ema_lengths}")
            for half_life in self.ema_half_lives:
                check.that(half_life.amount > 0, f"ema_half_lives must be more than 0, not '{half_life}'")
            check.that(0 <= self.label_drop <= 1, f"label_drop must lie in [0, 1], not {self.label_drop}")
            check.that(0 <= self.augment <= 1, f"augment must lie in [0, 1], not {self.augment}")
            for name in ("duration", "log_every", "sample_every", "save_every", "ema_snapshot_every"):
                check.that(getattr(self, name).amount > 0, f"{name} must be more than 0, not '{getattr(self, name)}'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """After how many steps things happen; snapshot: 0 for never. total: at which step training ends."""

    log: int
    sample: int
    save: int
    snapshot: int
    total: int

    def together(self, done: int, most: int) -> int:
        """How many steps to do at once after `done`: `most` where nothing happens between them, else 1."""
        often = [each for each in (self.log, self.sample, self.save, self.snapshot) if each]
        room = min(self.total - done, *(each - done % each for each in often))
        return most if most <= room else 1


def train(
    state: TrainState,
    batches: Prefetched,
    step: Callable[[TrainState, tuple[Any, ...]], TrainState],
    *,
    steps_per_call: int,
    every: Every,
    checkpoints: Checkpoints,
    metrics: MetricWriter,
    learning_rate: Callable[[int], Any],
    preview: Callable[[int, tuple[Params, ...]], None],
    snapshot: Callable[[TrainState], None],
    clock: Clock,
    profiler: Profiler,
    stop: StopRequest,
) -> TrainState:
    """Trains to step `every.total`. step: does one on each of the batches; compiled, donating the state.

    preview(step, averages) shows samples. snapshot(state) keeps the averages, before any checkpoint of that step or a
    later one is written.

    Saves at the end and on a signal, and raises `Interrupted` after the latter; raises `RunFailed` where the loss is
    not finite.
    """
    done, whole, empty = int(state.step), state.step.sharding, jax.device_get(Window.empty())
    progress = Progress("train", every.total, done=done, every=float("inf"))
    last_log, last_saved = done, done
    try:
        while True:
            stopping = stop.due()
            if done > last_log and (done % every.log == 0 or done == every.total):
                window = _read(state.window, checkpoints)
                rates = clock.figures(done - last_log)
                metrics.scalars(done, {**window, "learning_rate": float(learning_rate(done - 1)), **rates})
                progress.line(f"loss {window['loss']:.4f}")
                state = dataclasses.replace(state, window=put(whole, empty))
                last_log = done

            if done > last_saved and done % every.sample == 0 and done < every.total:
                with clock.paused():
                    preview(done, state.ema)

            if every.snapshot and done > last_saved and (done % every.snapshot == 0 or done == every.total):
                _read(state.window, checkpoints)
                snapshot(state)

            if done > last_saved and (done % every.save == 0 or done == every.total or stopping):
                _read(state.window, checkpoints)
                checkpoints.save(state, batches.state)
                last_saved = done
            if stopping:
                checkpoints.wait()
                say(f"train: step {done} is saved" if done else "train: no step was done yet")
                raise Interrupted(stopping)
            if done >= every.total:
                checkpoints.wait()
                return state

            count = every.together(done, steps_per_call)
            with clock.waiting():
                batch = tuple(next(batches) for _ in range(count))
            profiler.before(done, count)
            state = step(state, batch)
            done += count
            profiler.after(done, state.step)
            progress.advance(count)
    finally:
        profiler.close()
        progress.close()


def _read(window: Window, checkpoints: Checkpoints) -> dict[str, float]:
    """The window's means, on the host: the only wait for the device. Raises RunFailed where one is not finite."""
    host = jax.device_get(window)
    if host.bad_step >= 0:
        checkpoints.wait()
        good = checkpoints.steps()
        kept = f"the last good checkpoint is step {good[-1]}" if good else "there is no checkpoint yet"
        values = f"loss {float(host.bad_loss)}, gradient norm {float(host.bad_gradient_norm)}"
        raise RunFailed(f"{values} at step {int(host.bad_step)}: training stopped; {kept}")
    count = max(int(host.count), 1)
    means = {"loss": host.loss / count, "gradient_norm": host.gradient_norm / count}
    return {name: float(np.float32(value)) for name, value in means.items()}
