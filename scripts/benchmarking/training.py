"""What the training loop costs beyond its compiled step: `scripts/benchmark --train [--config=FILE] [--steps=50]`.

The loop that trains, with its data, its log and its clock, against as many calls of its compiled step on one batch that
is on the device already; in turn, the fastest of each counts. Nothing is written. Exit status 1 where the loop costs
over 2 % more, or the host waits over 2 % of the time for data.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax

from score_sde import build
from score_sde.data import Prefetched
from score_sde.experiment import train
from score_sde.experiment.base import Experiment
from score_sde.training import loop
from score_sde.training.interrupt import StopRequest
from score_sde.training.profiling import Clock, Profiler, ProfileSettings
from score_sde.training.step import several

ROUNDS, MOST = 5, 0.02
LOG_EVERY = 50


class Unwritten:
    """In the place of checkpoints and of the log: keeps the seconds and how many of them data were waited for."""

    def __init__(self, step: int) -> None:
        self._step, self.seconds, self.waited = step, 0.0, 0.0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        seconds = (step - self._step) * values["step_seconds"]
        self._step, self.seconds = step, self.seconds + seconds
        self.waited += values["data_wait_share"] * seconds

    def save(self, state: Any, data: Any) -> None: ...

    def wait(self) -> None: ...

    def steps(self) -> list[int]:
        return []


def run(flags: argparse.Namespace) -> int:
    """The exit status."""
    experiment = configured(flags)
    with experiment.batches(train.fields(experiment)) as batches:
        return _compared(flags, experiment, batches)


def configured(flags: argparse.Namespace) -> Experiment:
    """The experiment of --config, --config.KEY=VALUE and --batch."""
    overrides = {**flags.overrides, **({"training.batch_size": str(flags.batch)} if flags.batch else {})}
    return build.build(build.load_config(flags.config), overrides, Path("unused"), "benchmark")


def compiled(flags: argparse.Namespace, experiment: Experiment, batch: Any) -> tuple[Any, Any]:
    """The training step, compiled, and the state after it."""
    shapes = jax.eval_shape(experiment.init_state)
    step = train.compile_step(experiment, several(train.step_of(experiment)), shapes)
    state = jax.jit(experiment.init_state, out_shardings=experiment.shardings(shapes))()
    start = time.perf_counter()
    state = jax.block_until_ready(step(state, batch))
    print(f"{flags.config}: first step, compiled, after {time.perf_counter() - start:.1f} s", flush=True)
    return step, state


def _compared(flags: argparse.Namespace, experiment: Experiment, batches: Prefetched) -> int:
    batch = (next(batches),)
    step, state = compiled(flags, experiment, batch)
    rate = jax.jit(experiment.learning_rate())
    state, _ = _looped(experiment, state, batches, step, rate, flags.steps)  # what only the first log takes
    alone, looped, waits = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(flags.steps):
            state = step(state, batch)
        jax.block_until_ready(state)
        alone.append((time.perf_counter() - start) / flags.steps)
        start = time.perf_counter()
        state, waited = _looped(experiment, state, batches, step, rate, flags.steps)
        looped.append((time.perf_counter() - start) / flags.steps)
        waits.append(waited)
    overhead, wait = min(looped) / min(alone) - 1, min(waits)
    print(f"compiled step {1e3 * min(alone):.2f} ms, in the loop {1e3 * min(looped):.2f} ms: {overhead:+.1%}")
    print(f"waited for data {wait:.2%} of the time; allowed for both {MOST:.0%}")
    return int(max(overhead, wait) > MOST)


def _looped(experiment: Experiment, state: Any, batches: Any, step: Any, rate: Any, steps: int) -> tuple[Any, float]:
    """The state after so many steps of the loop, and the share of its time that it waited for data."""
    kept, total = Unwritten(int(state.step)), int(state.step) + steps
    state = loop.train(
        state,
        batches,
        step,
        steps_per_call=1,
        every=loop.Every(log=min(LOG_EVERY, steps), sample=10**9, save=10**9, snapshot=0, total=total),
        checkpoints=kept,  # type: ignore[arg-type]
        metrics=kept,  # type: ignore[arg-type]
        learning_rate=rate,
        preview=lambda *_: None,
        snapshot=lambda _: None,
        clock=Clock(batch_size=experiment.training.batch_size),
        profiler=Profiler(ProfileSettings(), Path("unused")),
        stop=StopRequest(),
    )
    return jax.block_until_ready(state), kept.waited / kept.seconds
