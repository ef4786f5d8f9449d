"""The dequantiser of a finished model, for `likelihood.dequantisation` "variational": fitted once, then read.

`reports/dequantiser.npz` holds its parameters, `leaf_0`, `leaf_1`, …, and the fingerprint of the model and the settings
that they were fitted with; `reports/.dequantiser.npz` a fit that was interrupted.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.distributed.mesh import by_batch, replicated
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import read_shared
from score_sde.models.dequantiser import Dequantiser, FlowDequantiser
from score_sde.training.dequantiser import fit, make_fit_step
from score_sde.training.interrupt import StopRequest
from score_sde.typing import Params
from score_sde.writers import say, write_arrays


def network(experiment: Experiment) -> Dequantiser:
    """The flow q(u | image). Raises UserError where it cannot take the images."""
    return Dequantiser(FlowDequantiser(channels=experiment.likelihood.dequantiser_channels), experiment.source.shape)


def trained(experiment: Experiment, step: int, model: Params, stop: StopRequest) -> Params:
    """The flow's parameters: those on disk if fitted to this model, the parameters at `step`, else new ones."""
    settings = experiment.likelihood
    fixed = (settings.dequantiser_steps, settings.dequantiser_learning_rate, settings.dequantiser_channels)
    fingerprint = experiment.fingerprint(step, "dequantiser", experiment.training.batch_size, *fixed)
    path = experiment.workdir.reports / "dequantiser.npz"
    stored = _read(experiment, path, fingerprint)
    if stored is not None:
        say("likelihood: the dequantiser is trained")
        return stored
    unfinished = path.with_name(".dequantiser.npz")
    params = _fit(experiment, model, unfinished, fingerprint, stop)
    if jax.process_index() == 0:
        arrays = {f"leaf_{number}": leaf for number, leaf in enumerate(jax.device_get(jax.tree.leaves(params)))}
        write_arrays(path, {"fingerprint": np.asarray(fingerprint), **arrays})
        unfinished.unlink(missing_ok=True)
    return params


def _init(experiment: Experiment) -> Params:
    return network(experiment).init(rng.stream(experiment.seed, "dequantiser parameters"))


def _read(experiment: Experiment, path: Path, fingerprint: str) -> Params | None:
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: _init(experiment)))
    stored = read_shared(path)
    if stored is None or str(stored.get("fingerprint")) != fingerprint or len(stored) != len(leaves) + 1:
        return None
    return jax.tree.unflatten(structure, [jnp.asarray(stored[f"leaf_{number}"]) for number in range(len(leaves))])


def _fit(experiment: Experiment, model: Params, unfinished: Path, fingerprint: str, stop: StopRequest) -> Params:
    settings, levels, mesh = experiment.likelihood, experiment.levels, experiment.mesh
    init, step = make_fit_step(
        experiment.denoiser,
        network(experiment).apply,
        levels,
        settings.dequantiser_learning_rate,
        experiment.seed,
    )
    fields = ("image", "label") if experiment.conditional else ("image",)
    whole, split = replicated(mesh), by_batch(mesh)
    with experiment.batches(fields) as batches:
        return fit(
            jax.jit(lambda: init(_init(experiment)), out_shardings=whole)(),
            jax.jit(step, in_shardings=(whole, None, split), out_shardings=whole, donate_argnums=0),
            model,
            batches,
            steps=settings.dequantiser_steps,
            path=unfinished,
            fingerprint=fingerprint,
            bits=lambda loss: loss / math.log(2) - math.log2(levels.width),
            stop=stop,
        )
