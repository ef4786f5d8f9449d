"""--mode=likelihood: exact bits/dim of the test split, and of pure noise for comparison.

`reports/likelihood.json` holds the figures, `reports/likelihood.npz` the bits/dim of every image and repeat.
"""

import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from score_sde import rng
from score_sde.distributed.mesh import by_batch, replicated
from score_sde.errors import RunFailed
from score_sde.evaluation.metrics import noise_images
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard, run_batches
from score_sde.likelihood import bits_per_dim, log_likelihood
from score_sde.training.interrupt import StopRequest
from score_sde.writers import say, write_arrays, write_json


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Computes what has not been computed for this checkpoint."""
    experiment, step, params = experiment.restore()
    fingerprint = experiment.fingerprint(step, experiment.likelihood)
    if read(experiment, fingerprint) is not None:
        say("likelihood: done")
        return
    compiled = _compile(experiment, params)
    test = experiment.test_records.arrays["image"]
    noise = noise_images(experiment.source.shape, experiment.source.levels, experiment.likelihood.noise_images)
    start = time.perf_counter()
    on_test = _bits(experiment, "test", test, compiled, params, fingerprint, experiment.likelihood.repeats, stop)
    on_noise = _bits(experiment, "noise", noise, compiled, params, fingerprint, 1, stop)
    seconds = time.perf_counter() - start
    figures: dict[str, Any] = {
        "fingerprint": fingerprint,
        "step": step,
        "test": _summary(on_test),
        "noise": _summary(on_noise),
        "uniform": math.log2(experiment.source.levels),
        "rtol": experiment.likelihood.rtol,
        "atol": experiment.likelihood.atol,
        "repeats": experiment.likelihood.repeats,
        "seconds": seconds,
    }
    arrays = {
        f"{key}_{field}": value
        for key, part in (("test", on_test), ("noise", on_noise))
        for field, value in part.items()
    }
    if jax.process_index() == 0:
        path = experiment.workdir.reports / "likelihood.npz"
        write_arrays(path, arrays)
        write_json(path.with_suffix(".json"), figures)
    for part in ("test", "noise"):
        discard(_folder(experiment, part))
    bits, error = figures["test"]["bits_per_dim"], figures["test"]["standard_error"]
    say(f"likelihood: {bits:.3f} ± {error:.3f} bits/dim on the test split")


def read(experiment: Experiment, fingerprint: str) -> dict[str, Any] | None:
    """The figures in `reports/likelihood.json` if made under `fingerprint`, else None."""
    try:
        figures = json.loads((experiment.workdir.reports / "likelihood.json").read_text())
    except (OSError, ValueError):
        return None
    made = isinstance(figures, dict) and figures.get("fingerprint") == fingerprint
    return figures if made else None


def _folder(experiment: Experiment, part: str):
    return experiment.workdir.reports / f".likelihood_{part}"


def _summary(arrays: Arrays) -> dict[str, float]:
    """Mean over the images that converged, and over repeats; the standard error is that of the mean over images.

    Raises RunFailed where none converged.
    """
    bits = arrays["bits_per_dim"].astype(np.float64)  # (repeats, images)
    per_image = bits.mean(axis=0)
    per_image = per_image[np.isfinite(per_image)]
    failed = bits.shape[1] - len(per_image)
    if failed:
        say(f"likelihood: {failed} of {bits.shape[1]} images did not converge and are left out; raise rtol and atol")
    if not len(per_image):
        raise RunFailed("the likelihood of no image converged; raise likelihood.rtol and likelihood.atol")
    return {
        "bits_per_dim": float(per_image.mean()),
        "standard_error": float(per_image.std(ddof=1) / math.sqrt(len(per_image))) if len(per_image) > 1 else 0.0,
        "images": len(per_image),
        "failed": failed,
        "evaluations": float(arrays["evaluations"].mean()),
    }


def _bits(
    experiment: Experiment,
    part: str,
    images: Integer[np.ndarray, "n height width channels"],
    compiled: Any,
    params: Any,
    fingerprint: str,
    repeats: int,
    stop: StopRequest,
) -> Arrays:
    """bits_per_dim (NaN where it failed) and evaluations, `(repeats, n)`.

    The last batch is filled up, and the filling dropped.
    """
    size, count = experiment.likelihood.batch_size, len(images)
    per_repeat = -(-count // size)

    def compute(number: int) -> Arrays:
        repeat, batch = divmod(number, per_repeat)
        index = np.arange(batch * size, (batch + 1) * size)
        return jax.device_get(compiled(params, images[index % count], index, repeat))

    name = f"likelihood {part}"
    parts = run_batches(name, _folder(experiment, part), fingerprint, repeats * per_repeat, compute, stop)
    joined = {key: np.concatenate([one[key] for one in parts]).reshape(repeats, -1)[:, :count] for key in parts[0]}
    joined["bits_per_dim"] = np.where(joined.pop("failed"), np.nan, joined["bits_per_dim"])
    return joined


def _compile(experiment: Experiment, params: Any):
    dimensions = math.prod(experiment.source.shape)

    def bits(params, image, index, repeat) -> dict[str, jax.Array]:
        keys = rng.for_samples(rng.at_step(rng.stream(experiment.seed, "likelihood"), repeat), index)
        settings = experiment.likelihood
        x = experiment.levels.dequantise(image, rng.child(keys, 0))
        denoiser = experiment.denoiser(params)
        result = log_likelihood(denoiser, x, rng.child(keys, 1), rtol=settings.rtol, atol=settings.atol)
        value: Float[jax.Array, "batch"] = bits_per_dim(result.log_prob, dimensions, experiment.source.levels)
        return {"bits_per_dim": value, "evaluations": result.evaluations, "failed": result.failed}

    whole, split = replicated(experiment.mesh), by_batch(experiment.mesh)
    size = experiment.likelihood.batch_size
    image = jax.ShapeDtypeStruct((size, *experiment.source.shape), jnp.uint8)
    index, repeat = jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    jitted = jax.jit(bits, in_shardings=(whole, split, split, whole), out_shardings=split)
    compiled = jitted.lower(params, image, index, repeat).compile()
    return lambda params, image, index, repeat: compiled(params, image, index.astype(np.int32), np.int32(repeat))
