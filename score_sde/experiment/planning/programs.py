"""What is planned: the training step and the sampling loop of an experiment, as its modes compile them, from shapes."""

from typing import Any

import jax
import numpy as np

from score_sde.distributed.mesh import by_batch, jit_over_batch, replicated
from score_sde.experiment import sample, train
from score_sde.experiment.base import Experiment
from score_sde.samplers import Sampler


def training_step(experiment: Experiment) -> Any:
    """The step, traced."""
    split, size = by_batch(experiment.mesh), experiment.training.batch_size
    of = lambda shape, dtype: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=split)
    fields = {"image": of(experiment.source.shape, experiment.levels.dtype)}
    fields["label"] = of((), np.int32)
    batch = {name: fields[name] for name in train.fields(experiment)}
    state = experiment.abstract_state()
    return train.compile_step(experiment, train.step_of(experiment), state).trace(state, batch)


def sampling_loop(experiment: Experiment, sampler: Sampler, batch_size: int) -> tuple[Any, int]:
    """The loop, traced, and how many times its body runs, which the program is only told."""
    averages = experiment.abstract_state().ema
    params = averages[experiment.evaluation.ema]
    if experiment.sde.learned:  # of any values: the program is the same
        experiment = experiment.learned({**params, "process": experiment.sde.init()})
    plan, mesh = sampler.plan(experiment.sampling_sde), experiment.mesh
    laid_out = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh))
    index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=by_batch(mesh))
    jitted = jit_over_batch(mesh, sample.program(experiment, sampler), sample.SPLIT)
    return jitted.trace(params, jax.tree.map(laid_out, jax.eval_shape(lambda: plan)), index), int(plan.passes)
