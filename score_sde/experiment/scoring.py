"""The likelihood of images, batch by batch: one compiled program gives every figure of every image and draw.

The figures are those of `reports/likelihood.npz`, see `experiment.likelihood`. The dequantisation noise, the probes and
the bound's times are functions of the seed, the draw and the image's place among those that are scored.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.augmented_likelihood import log_likelihood_bound
from score_sde.distributed.mesh import compile_over_batch
from score_sde.experiment import dequantiser
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, run_batches
from score_sde.likelihood import bits_per_dim, log_likelihood
from score_sde.losses import Times, bound_terms
from score_sde.losses.times import Importance
from score_sde.sde import SDE
from score_sde.training.dequantiser import dequantise
from score_sde.training.interrupt import StopRequest
from score_sde.training.step import NO_LABEL
from score_sde.typing import Condition, Data, Keys, Params, PerSample

Images = Integer[np.ndarray, "n height width channels"]
Labels = Integer[np.ndarray, "n"]
# Of the two unbiased choices the one with less variance: uniform in log_snr no time has a large weight, uniform in t
# those near t_min have, g²/σ² ~ 1/t.
TIMES = Times(Importance(), low_discrepancy=True)


class Scored(NamedTuple):
    """The images to score; what each is called; its label, `NO_LABEL` where it has none or the network takes none."""

    images: Images
    names: list[str]
    labels: Labels

    @property
    def conditional(self) -> bool:
        """Whether what is scored is log p(x | label), each image with its own."""
        return bool(np.any(self.labels != NO_LABEL))


def has_bound(experiment: Experiment) -> bool:
    """Whether the process has an evidence bound."""
    return isinstance(experiment.sde, SDE) and not experiment.sde.ends_in_noise


def scratch(experiment: Experiment, part: str) -> Path:
    """Where the finished batches of `part` are kept."""
    return experiment.workdir.reports / f".likelihood_{part}"


def compile_figures(experiment: Experiment, params: Params, flow: Params) -> tuple[Callable[..., Arrays], float]:
    """(images, labels, index, repeat) -> the figures of one batch; and the seconds of compiling it.

    flow: the dequantiser's parameters, unused where dequantisation is uniform.
    """
    size = experiment.likelihood.batch_size
    image = jax.ShapeDtypeStruct((size, *experiment.source.shape), experiment.levels.dtype)
    index = jax.ShapeDtypeStruct((size,), jnp.int32)
    figures = functools.partial(_figures, experiment)
    split = (False, False, True, True, True, False)
    compiled = compile_over_batch(experiment.mesh, figures, (params, flow, image, index, index, np.int32(0)), split)

    def call(images: Images, labels: Labels, index: np.ndarray, repeat: int) -> Arrays:
        small = (labels.astype(np.int32), index.astype(np.int32), np.int32(repeat))
        return compiled(params, flow, images, *small)

    return call, compiled.seconds


def score(
    experiment: Experiment,
    part: str,
    scored: Scored,
    compute: Callable[..., Arrays],
    fingerprint: str,
    repeats: int,
    stop: StopRequest,
) -> tuple[Arrays, float]:
    """Each figure as `(repeats, n)`, and the seconds it took. The last batch is filled up, and the filling dropped.

    part: what the images are called. compute: as `compile_figures` gives it. Each batch is kept in `scratch` under the
    fingerprint until the caller discards it.
    """
    size, count = experiment.likelihood.batch_size, len(scored.images)
    per_repeat = -(-count // size)

    def one(number: int) -> Arrays:
        repeat, batch = divmod(number, per_repeat)
        index = np.arange(batch * size, (batch + 1) * size)
        start = time.perf_counter()
        arrays = compute(scored.images[index % count], scored.labels[index % count], index, repeat)
        return {**arrays, "seconds": np.float64(time.perf_counter() - start)}

    folder, total = scratch(experiment, part), repeats * per_repeat
    parts = run_batches(f"likelihood {part}", folder, fingerprint, total, one, stop)
    seconds = float(sum(part.pop("seconds") for part in parts))
    return {key: np.concatenate([p[key] for p in parts]).reshape(repeats, -1)[:, :count] for key in parts[0]}, seconds


def _figures(
    experiment: Experiment,
    params: Params,
    flow: Params,
    image: jax.Array,
    label: jax.Array,
    index: jax.Array,
    repeat: jax.Array,
) -> dict[str, jax.Array]:
    keys = rng.for_samples(rng.at_step(rng.stream(experiment.seed, "likelihood"), repeat), index)
    denoiser, condition = experiment.denoiser(params), experiment.condition(label)
    if experiment.likelihood.dequantisation == "variational":
        draw = dequantiser.network(experiment).apply
        x, log_q = dequantise(draw, flow, experiment.levels, image, rng.child(keys, 0))
    else:
        x, log_q = experiment.levels.dequantise(image, rng.child(keys, 0)), jnp.zeros(len(image))
    figures = _by_ode(experiment, denoiser, x, log_q, rng.child(keys, 1), condition)
    if experiment.likelihood.bound_draws and has_bound(experiment):
        figures |= _by_bound(experiment, denoiser, x, log_q, rng.child(keys, 2), condition)
    return figures


def _by_ode(
    experiment: Experiment, denoiser: Any, x: Data, log_q: PerSample, keys: Keys, condition: Condition
) -> dict[str, jax.Array]:
    """Exact, or of an augmented process an upper bound."""
    settings = experiment.likelihood
    tolerance = {"rtol": settings.rtol, "atol": settings.atol}
    result: Any
    if isinstance(denoiser, AugmentedDenoiser):
        result = log_likelihood_bound(denoiser, x, keys, condition, **tolerance)
    else:
        trace, probes = settings.trace, settings.probes
        result = log_likelihood(denoiser, x, keys, condition=condition, trace=trace, probes=probes, **tolerance)
    bits = bits_per_dim(result.log_prob - log_q, experiment.dimensions, experiment.levels.width)
    return {
        "bits_per_dim": jnp.where(result.failed, jnp.nan, bits),
        "log_prob": result.log_prob,
        "log_q": log_q,
        "evaluations": result.evaluations,
    }


def _by_bound(
    experiment: Experiment, denoiser: Any, x: Data, log_q: PerSample, keys: Keys, condition: Condition
) -> dict[str, jax.Array]:
    """The terms of the evidence bound in bits/dim, each the mean over `bound_draws` times and noises."""
    draws, size, dimensions = experiment.likelihood.bound_draws, len(x), experiment.dimensions
    # One spread of all times of the batch, draw after draw: those of one image are a draws-th of log_snr apart.
    times = TIMES.draw(denoiser.sde, keys[jnp.arange(draws * size) % size], ())
    rank = spread(size)
    t, factor = (each.reshape(draws, size)[:, rank] for each in times)

    def one_draw(arguments):
        number, t, factor = arguments
        return bound_terms(denoiser, x, condition, rng.child(keys, 1 + number), t, factor)

    terms = jax.tree.map(lambda each: jnp.mean(each, axis=0), jax.lax.map(one_draw, (jnp.arange(draws), t, factor)))
    figures = {name: value / (dimensions * math.log(2)) for name, value in terms._asdict().items()}
    figures["reconstruction"] += bits_per_dim(-log_q, dimensions, experiment.levels.width)
    return figures


def spread(size: int) -> Integer[np.ndarray, "size"]:
    """An order of 0 … size − 1 of which any beginning is spread evenly: multiples of the golden ratio, mod 1.

    Of a batch that is filled up only the beginning counts.
    """
    return np.argsort(np.argsort(np.arange(size) * 0.5 * (math.sqrt(5) - 1) % 1))
