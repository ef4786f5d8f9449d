"""--mode=sample: samples from the newest checkpoint with each configured sampler; other tasks are in `encode`.

`samples/NAME.npz` holds `samples` (float32, the solver's output), `image` (levels, as the data have them), `label`
(int32, `NO_LABEL` where a sample has none), `evaluations` (int32, network evaluations spent on each), `order` (with
which the solver converges as it was set, NaN where it has none) and the record of how they were made;
`samples/NAME.png` the first of them as a picture, and of sounds `samples/NAME/` the first of them as WAV files. A
sample is a function of the seed, its index and its label.
"""

import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from score_sde import rng
from score_sde.data import WAV
from score_sde.distributed.mesh import OverBatch, compile_over_batch
from score_sde.experiment import encode
from score_sde.experiment.base import Experiment, sample_indices
from score_sde.experiment.batches import Arrays, discard, read_shared, run_batches
from score_sde.experiment.label import UNLABELLED
from score_sde.experiment.pictures import write_png
from score_sde.experiment.sounds import write_sounds
from score_sde.samplers import Plan, Sampler
from score_sde.training.interrupt import StopRequest
from score_sde.typing import Params
from score_sde.writers import say, write_arrays

GRID_IMAGES = 100
SOUNDS = 16  # that are written as WAV files
SPLIT = (False, False, True)  # which arguments of a sampler's program are batches


def run(experiment: Experiment, stop: StopRequest) -> None:
    """The task that `sampling.task` names."""
    if experiment.sampling.task == "generate":
        generate(*experiment.restore(), stop)
    else:
        encode.run(experiment, stop)


def generate(experiment: Experiment, step: int, params: Params, stop: StopRequest) -> None:
    """Runs the samplers that have not been run on this checkpoint; reuses the results of those that have.

    experiment, step, params: as `Experiment.restore` gives them.
    """
    say_if_untrained(experiment, "sample")
    for name, sampler in experiment.samplers.items():
        record = record_of(experiment, step, name)
        if read(experiment, name, record) is not None:
            say(f"sample: {name} is done")
            continue
        _run_one(experiment, name, sampler, params, record, stop)


def say_if_untrained(experiment: Experiment, mode: str) -> None:
    """Says that samples without labels are asked of a network that has never gone without."""
    if experiment.conditional and experiment.sampling.label == UNLABELLED and not experiment.training.label_drop:
        remedy = "set sampling.label to all or a number"
        say(f"{mode}: without labels, which training.label_drop=0 has not trained; {remedy}")


def record_of(experiment: Experiment, step: int | None, name: str) -> dict[str, Any]:
    """How `samples/NAME.npz` of this experiment at `step` is made; equal records mean equal samples, but of step None,
    which says what those of all steps have in common."""
    sampling = experiment.sampling
    settings = experiment.config["samplers"][name]
    return {
        "sampler": name,
        "settings": settings,
        "process": experiment.config["sampling_sde"],
        "step": step,
        "num_samples": sampling.num_samples,
        "batch_size": sampling.batch_size,
        "seed": sampling.seed,
        "label": str(sampling.label),
        "fingerprint": experiment.fingerprint(
            step, settings, experiment.config["sampling_sde"], sampling.batch_size, sampling.seed, sampling.label
        ),
    }


def read(experiment: Experiment, name: str, record: dict[str, Any]) -> Arrays | None:
    """The arrays of `samples/NAME.npz` if it was made as `record` says, else None."""
    arrays = read_shared(experiment.workdir.samples / f"{name}.npz")
    made = arrays is not None and str(arrays.get("record")) == json.dumps(record)
    return arrays if made else None


def _run_one(
    experiment: Experiment, name: str, sampler: Sampler, params: Params, record: dict[str, Any], stop: StopRequest
) -> None:
    size, total = experiment.sampling.batch_size, experiment.sampling.num_samples
    folder, compute = experiment.workdir.samples / f".{name}", batches(experiment, name, params)
    parts = run_batches(f"sample {name}", folder, record["fingerprint"], -(-total // size), compute, stop)
    arrays: Arrays = {
        key: np.concatenate([part[key] for part in parts])[:total]
        for key in ("samples", "image", "label", "evaluations", "failed")
    }
    seconds = float(sum(part["seconds"] for part in parts))
    failed = int(arrays.pop("failed").sum())
    if failed:
        why = "not finite, or the integration did not reach its tolerance"
        say(f"sample: {failed} of {total} samples of {name} failed: {why}")
    arrays |= {
        "record": np.asarray(json.dumps(record)),
        "seconds": np.float64(seconds),
        "compile_seconds": np.float64(max(part["compile_seconds"] for part in parts)),
        "failed": np.int64(failed),
        "order": np.float64(math.nan if sampler.solver.convergence is None else sampler.solver.convergence),
    }
    if jax.process_index() == 0:
        path = experiment.workdir.samples / f"{name}.npz"
        write_png(path.with_suffix(".png"), experiment.picture(arrays["image"][: experiment.shown(GRID_IMAGES)]))
        if isinstance(experiment.source, WAV):
            write_sounds(path.with_suffix(""), arrays["image"][:SOUNDS], experiment.source.rate)
        write_arrays(path, arrays)
    discard(folder)
    order = sampler.solver.convergence
    kind = "" if order is None else f", order {order:g}{' (weak)' if sampler.solver.stochastic else ''}"
    spent = f"{'' if sampler.solver.counts_evaluations else 'at least '}{arrays['evaluations'].mean():.0f}"
    say(f"sample: {name}: {total} samples, {spent} evaluations each, {seconds:.1f} s{kind}")


def batches(experiment: Experiment, name: str, params: Params) -> Callable[[int], Arrays]:
    """The samples of each batch by its number, as arrays of `sampling.batch_size`, compiled when first asked for.

    Of the sampler `name`; experiment and params: as `Experiment.restore` gives them. Each has its `seconds`, and those
    of compiling.
    """
    sampler, size = experiment.samplers[name], experiment.sampling.batch_size
    plan = sampler.plan(experiment.sampling_sde)
    compiled = functools.cache(lambda: _compile(experiment, sampler, params, plan))

    def batch(number: int) -> Arrays:
        run, start = compiled(), time.perf_counter()
        result = run(params, plan, sample_indices(number * size, size))
        return {
            **result,
            "seconds": np.float64(time.perf_counter() - start),
            "compile_seconds": np.float64(run.seconds),
        }

    return batch


def _compile(experiment: Experiment, sampler: Sampler, params: Params, plan: Plan) -> OverBatch:
    """The compiled sampler of one batch, (params, plan, index) -> arrays."""
    arguments = (params, plan, sample_indices(0, experiment.sampling.batch_size))
    return compile_over_batch(experiment.mesh, program(experiment, sampler), arguments, SPLIT)


def program(experiment: Experiment, sampler: Sampler) -> Callable[[Params, Plan, jax.Array], dict[str, jax.Array]]:
    """The sampler of one batch, to be compiled."""

    def sample(params: Params, plan: Plan, index: jax.Array) -> dict[str, jax.Array]:
        keys = rng.for_samples(rng.stream(experiment.sampling.seed, "sampling"), index)
        label = experiment.sampling.label.of_samples(index, experiment.architecture.classes)
        denoiser, condition = experiment.sampling_denoiser(params), experiment.condition(label)
        result = sampler(denoiser, plan, keys, experiment.source.shape, condition)
        return {
            "samples": result.x,
            "image": experiment.levels.quantise(result.x),
            "label": label,
            "evaluations": result.evaluations,
            "failed": result.failed,
        }

    return sample
