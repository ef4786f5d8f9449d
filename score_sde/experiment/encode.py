"""--mode=sample with sampling.task "reconstruct" or "interpolate": test images encoded by the ODE, and decoded.

`samples/reconstruct.npz` holds, for each image, `original` and `image` (levels, before and after), `x` and `samples`
(the dequantised values, before and after), `error` (the largest difference of the two), `label`, `latent` and
`evaluations`; `samples/reconstruct.png` shows originals above reconstructions.

`samples/interpolate.npz` holds, for each pair 2i, 2i + 1 of test images, `original` (pairs, 2, …), their `label`
(pairs, 2), `samples` and `image` (pairs, steps, …) along the arc between the two latents, its ends included, and
`share` (steps,); `samples/interpolate.png` has one row a pair.

A network with classes encodes each image given its own label, and decodes it given the same: the ODE of another label,
or of none, is another map. A point between two images is decoded given the label of the nearer one (the first at the
middle). So the ends are reconstructions, and all points between two images of one class are of that class; between two
classes the path is continuous but for a jump at the middle, since there is no label between two labels. `label` is
`NO_LABEL` where the network takes none.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import rng
from score_sde.data import whole
from score_sde.distributed.mesh import compile_over_batch
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard, read_shared, run_batches
from score_sde.experiment.pictures import write_png
from score_sde.likelihood import decode, encode, slerp
from score_sde.training.interrupt import StopRequest
from score_sde.typing import Params
from score_sde.writers import say, write_arrays

SHOWN = 10  # rows of interpolations, or columns of reconstructions


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Does the task of `sampling.task`, unless it is done for this checkpoint."""
    experiment, step, params = experiment.restore()
    sampling, likelihood, task = experiment.sampling, experiment.likelihood, experiment.sampling.task
    per_item = 2 if task == "interpolate" else 1
    images, labels = whole(experiment.test_records, "image"), experiment.labels_of(experiment.test_records)
    count = min(sampling.num_samples, len(images) // per_item)
    record: dict[str, Any] = {
        "task": task,
        "step": step,
        "num_samples": count,
        "batch_size": sampling.batch_size,
        "seed": sampling.seed,
        "rtol": likelihood.rtol,
        "atol": likelihood.atol,
        "conditional": experiment.conditional,
    }
    if task == "interpolate":
        record["interpolation_steps"] = sampling.interpolation_steps
    record["fingerprint"] = experiment.fingerprint(step, record)
    path = experiment.workdir.samples / f"{task}.npz"
    stored = read_shared(path)
    if stored is not None and str(stored.get("record")) == json.dumps(record):
        say(f"sample: {task} is done")
        return
    items = images[: per_item * count].reshape(count, per_item, *images.shape[1:])
    arrays = _compute(experiment, params, items, labels[: per_item * count].reshape(count, per_item), record, stop)
    failed = int(arrays.pop("failed").sum())
    if failed:
        say(f"sample: {failed} of {count} of {task} failed: the integration did not reach its tolerance")
    share = {"share": _shares(experiment)} if task == "interpolate" else {}
    if jax.process_index() == 0:
        write_png(path.with_suffix(".png"), _picture(experiment, arrays))
        write_arrays(path, arrays | share | {"record": np.asarray(json.dumps(record)), "failed": np.int64(failed)})
    discard(experiment.workdir.samples / f".{task}")
    say(_line(task, count, arrays))


def _line(task: str, count: int, arrays: Arrays) -> str:
    about = f"{arrays['evaluations'].mean():.0f} evaluations each, {arrays['seconds']:.1f} s"
    if task == "interpolate":
        return f"sample: interpolate: {count} pairs, {about}"
    finite = arrays["error"][np.isfinite(arrays["error"])]
    worst = f"{finite.max():.2g}" if len(finite) else "unknown"
    return f"sample: reconstruct: {count} images, largest error {worst}, {about}"


def _shares(experiment: Experiment) -> np.ndarray:
    return np.linspace(0, 1, experiment.sampling.interpolation_steps, dtype=np.float32)


def _compute(
    experiment: Experiment,
    params: Params,
    items: np.ndarray,
    labels: np.ndarray,
    record: dict[str, Any],
    stop: StopRequest,
) -> Arrays:
    """The arrays of a task. items `(count, images, …)`, levels, and labels `(count, images)`: one image, or two."""
    size, count, task = experiment.sampling.batch_size, len(items), experiment.sampling.task
    function = _interpolate if task == "interpolate" else _reconstruct
    abstract = lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
    arguments = (params, abstract(items), abstract(labels), abstract(np.zeros(1, np.int32)))
    bound = lambda params, items, labels, index: function(experiment, params, items, labels, index)
    compiled = compile_over_batch(experiment.mesh, bound, arguments, (False, True, True, True))

    def compute(number: int) -> Arrays:
        index = np.arange(number * size, (number + 1) * size, dtype=np.int32)
        start = time.perf_counter()
        result = compiled(params, items[index % count], labels[index % count], index)
        return {**result, "seconds": np.float64(time.perf_counter() - start)}

    folder = experiment.workdir.samples / f".{task}"
    parts = run_batches(f"sample {task}", folder, record["fingerprint"], -(-count // size), compute, stop)
    seconds = np.float64(sum(part.pop("seconds") for part in parts))
    joined = {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}
    return {**joined, "seconds": seconds}


def _reconstruct(
    experiment: Experiment, params: Params, items: jax.Array, labels: jax.Array, index: jax.Array
) -> dict[str, jax.Array]:
    original, label, denoiser = items[:, 0], labels[:, 0], experiment.denoiser(params)
    x = experiment.levels.dequantise(original, rng.child(_keys(experiment, index), 0))
    condition, tolerance = experiment.condition(label), _tolerance(experiment)
    there = encode(denoiser, x, condition=condition, **tolerance)
    back = decode(denoiser, there.x, condition=condition, **tolerance)
    return {
        "original": original,
        "label": label,
        "x": x,
        "latent": there.x,
        "samples": back.x,
        "image": experiment.levels.quantise(back.x),
        "error": jnp.max(jnp.abs(back.x - x), axis=tuple(range(1, x.ndim))),
        "evaluations": there.evaluations + back.evaluations,
        "failed": there.failed | back.failed,
    }


def _interpolate(
    experiment: Experiment, params: Params, items: jax.Array, labels: jax.Array, index: jax.Array
) -> dict[str, jax.Array]:
    denoiser, tolerance, keys = experiment.denoiser(params), _tolerance(experiment), _keys(experiment, index)
    pairs, shape, shares = len(items), items.shape[2:], jnp.asarray(_shares(experiment))
    ends = jnp.stack([experiment.levels.dequantise(items[:, n], rng.child(keys, n)) for n in (0, 1)], axis=1)
    own = experiment.condition(labels.reshape(2 * pairs))
    there = encode(denoiser, ends.reshape(2 * pairs, *shape), condition=own, **tolerance)
    latent = there.x.reshape(pairs, 2, *shape)
    arc = lambda share: slerp(latent[:, 0], latent[:, 1], jnp.broadcast_to(share, pairs))
    path = jnp.moveaxis(jax.vmap(arc)(shares), 0, 1)
    nearer = experiment.condition(jnp.where(shares[None] <= 0.5, labels[:, :1], labels[:, 1:]).reshape(-1))
    back = decode(denoiser, path.reshape(pairs * len(shares), *shape), condition=nearer, **tolerance)
    spent = there.evaluations.reshape(pairs, -1).sum(axis=1) + back.evaluations.reshape(pairs, -1).sum(axis=1)
    return {
        "original": items,
        "label": labels,
        "latent": latent,
        "samples": back.x.reshape(path.shape),
        "image": experiment.levels.quantise(back.x).reshape(path.shape),
        "evaluations": spent,
        "failed": there.failed.reshape(pairs, -1).any(axis=1) | back.failed.reshape(pairs, -1).any(axis=1),
    }


def _tolerance(experiment: Experiment) -> dict[str, float]:
    return {"rtol": experiment.likelihood.rtol, "atol": experiment.likelihood.atol}


def _keys(experiment: Experiment, index: jax.Array) -> jax.Array:
    return rng.for_samples(rng.stream(experiment.sampling.seed, experiment.sampling.task), index)


def _picture(experiment: Experiment, arrays: Arrays) -> np.ndarray:
    if experiment.sampling.task == "interpolate":
        shown = arrays["image"][:SHOWN]
        columns = shown.shape[1]
        shown = shown.reshape(-1, *shown.shape[2:])
    else:
        columns = min(SHOWN, len(arrays["image"]))
        shown = np.concatenate([arrays["original"][:columns], arrays["image"][:columns]])
    return experiment.picture(shown, columns)
