"""How fast data come: `scripts/benchmark --data [--config=FILE] [--config.KEY=VALUE ...] [--steps=50]`.

Records a second of the pipeline, from the source to the devices, against those that the compiled training step takes
when its batch is on the device already; in turn, the fastest of each counts. Exit status 1 where data do not come at
least five times as fast as they are taken.
"""

import argparse
import time

import jax

from score_sde.experiment import train
from scripts.benchmarking import training

ROUNDS, LEAST = 5, 5.0


def run(flags: argparse.Namespace) -> int:
    """The exit status."""
    experiment = training.configured(flags)
    size, workers = experiment.training.batch_size, experiment.training.workers
    with experiment.batches(train.fields(experiment)) as batches:
        batch = (next(batches),)
        step, state = training.compiled(flags, experiment, batch)
        taken, given = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(flags.steps):
                state = step(state, batch)
            jax.block_until_ready(state)
            taken.append(size * flags.steps / (time.perf_counter() - start))
            for _ in range(3 * max(workers, 1)):  # made ahead while the step ran
                next(batches)
            start = time.perf_counter()
            for _ in range(flags.steps):
                jax.block_until_ready(next(batches))
            given.append(size * flags.steps / (time.perf_counter() - start))
    ratio = max(given) / max(taken)
    shape = "x".join(map(str, experiment.source.shape))
    how = f"{workers} workers" if workers else "no workers"
    print(f"records of {shape} in batches of {size}, {how}: {max(given):,.0f} a second")
    print(f"the compiled step takes {max(taken):,.0f} a second: data come {ratio:.1f} times as fast; least {LEAST:.0f}")
    return int(ratio < LEAST)
