"""--mode=likelihood: exact bits/dim and the evidence bound of images, and of pure noise for comparison.

The images are the test split, the train split or a folder (`likelihood.data`), and NAME below "test", "train" or
"folder". `reports/likelihood.json` holds the figures; `reports/likelihood.npz` those of every image and draw: `NAME_id`
(a number in the split, or a file's name) and, as `NAME_…` and `noise_…`, each `(repeats, images)`:

    bits_per_dim                        of the dequantised image: exact, or of an augmented process an upper bound
                                        (see `augmented_likelihood`); NaN where the integration failed
    log_prob, log_q                     its parts in nats: of x, and of the dequantisation noise (0 where uniform)
    evaluations                         of the network
    prior, diffusion, reconstruction    of the bound, in bits/dim; the last one with log q and the width of a level
                                        in it, so that the three sum to the bound

See docs/likelihood.md for what each is; `scoring` computes them.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.data import whole
from score_sde.data.folder import read_folder
from score_sde.errors import Checks, RunFailed, UserError
from score_sde.evaluation.halves import noise_images
from score_sde.experiment import dequantiser
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard
from score_sde.experiment.scoring import Images, Scored, compile_figures, has_bound, score, scratch
from score_sde.likelihood import bits_per_dim, importance_weighted
from score_sde.losses import BoundTerms
from score_sde.sde import SDE
from score_sde.training.interrupt import StopRequest
from score_sde.training.step import NO_LABEL
from score_sde.writers import say, write_arrays, write_json

SPLITS = ("test", "train")


def check(experiment: Experiment) -> None:
    """Raises UserError where the images cannot be read, or the dequantiser not be trained."""
    settings = experiment.likelihood
    if not isinstance(experiment.sde, SDE):
        _check_augmented(experiment)
    if settings.data not in SPLITS:
        try:
            _scored(experiment)
        except UserError as error:
            raise UserError(f"likelihood.data: {error}") from error
    elif settings.data == "train":
        _ = experiment.train_records
    else:
        _ = experiment.test_records
    if settings.dequantisation == "variational":
        if not experiment.source.levels:
            raise UserError("likelihood.dequantisation='variational' is for data with levels; use uniform")
        dequantiser.network(experiment)
        if not has_bound(experiment):
            raise UserError(
                "likelihood.dequantisation='variational' is trained on the evidence bound, which needs a finite "
                "log_snr at T, not a process that ends in pure noise; use uniform"
            )


def _check_augmented(experiment: Experiment) -> None:
    """What is only for affine processes."""
    settings = experiment.likelihood
    with Checks() as check:
        plain = settings.trace == "rademacher" and settings.probes == 1
        check.that(plain, "likelihood.trace must be 'rademacher' with one probe for an augmented process")
        check.that(
            settings.dequantisation == "uniform",
            "likelihood.dequantisation='variational' is trained on the bound of an affine process; use uniform",
        )


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Computes what has not been computed for this checkpoint."""
    experiment, step, params = experiment.restore()
    scored = _scored(experiment)
    fingerprint = _fingerprint(experiment, step, scored)
    if _read(experiment, fingerprint) is not None:
        say("likelihood: done")
        return
    settings, levels = experiment.likelihood, experiment.source.levels
    flow = dequantiser.trained(experiment, step, params, stop) if settings.dequantisation == "variational" else {}
    if settings.bound_draws and not has_bound(experiment):
        say("likelihood: no evidence bound of this process, which ends in pure noise or is augmented")
    compute, compile_seconds = compile_figures(experiment, params, flow)
    noise = _unlabelled(noise_images(experiment.source.shape, levels, np.arange(settings.noise_images)))
    name = _name(settings.data)
    on_data, seconds = score(experiment, name, scored, compute, fingerprint, settings.repeats, stop)
    on_noise, noise_seconds = score(experiment, "noise", noise, compute, fingerprint, 1, stop)
    figures: dict[str, Any] = {
        "fingerprint": fingerprint,
        "step": step,
        "data": name,
        "first": len(scored.images) if settings.images else 0,
        "conditional": scored.conditional,
        name: _summary(experiment, on_data),
        "noise": _summary(experiment, on_noise),
        "uniform": experiment.levels.uniform_bits,
        "dimensions": experiment.dimensions,
        "levels": levels,
        **{key: getattr(settings, key) for key in ("rtol", "atol", "trace", "probes", "repeats", "dequantisation")},
        "exact": isinstance(experiment.sde, SDE),
        "bound_draws": settings.bound_draws if has_bound(experiment) else 0,
        "seconds": seconds + noise_seconds,
        "compile_seconds": compile_seconds,
    }
    if jax.process_index() == 0:
        path = experiment.workdir.reports / "likelihood.npz"
        parts = ((name, on_data), ("noise", on_noise))
        arrays = {f"{key}_{field}": value for key, part in parts for field, value in part.items()}
        write_arrays(path, {f"{name}_id": np.asarray(scored.names), **arrays})
        write_json(path.with_suffix(".json"), figures)
    for part in (name, "noise"):
        discard(scratch(experiment, part))
    say(f"likelihood: {line(figures)}")


def read(experiment: Experiment, step: int) -> dict[str, Any] | None:
    """The figures in `reports/likelihood.json` if made of this checkpoint with these settings, else None."""
    try:
        scored = _scored(experiment)
    except UserError:  # the folder was there when they were made
        return None
    return _read(experiment, _fingerprint(experiment, step, scored))


def line(figures: dict[str, Any]) -> str:
    """The figures of the images in one line."""
    data = figures[figures["data"]]
    text = f"{data['bits_per_dim']:.3f} ± {data['standard_error']:.3f} bits/dim"
    if not figures["levels"]:  # of a density, which is customarily given in nats of the whole
        text += f" ({data['bits_per_dim'] * figures['dimensions'] * math.log(2):.3f} nats)"
    text += f" on {title(figures)}"
    if data["importance_weighted"] is not None:
        text += f", {data['importance_weighted']['bits_per_dim']:.3f} with {figures['repeats']} draws weighted"
    if data["bound"] is not None:
        text += f", evidence bound {data['bound']['bits_per_dim']:.3f} ± {data['bound']['standard_error']:.3f}"
    return text


def title(figures: dict[str, Any]) -> str:
    """What the images are called, how many where not all, and whether they are scored given their labels."""
    images = f"the {figures['data']} split" if figures["data"] in SPLITS else "the folder's images"
    images = f"the first {figures['first']} of {images}" if figures["first"] else images
    return f"{images} given its labels" if figures["conditional"] else images


def noise_title(figures: dict[str, Any]) -> str:
    """The same of pure noise, which has no label."""
    return "pure noise without a label" if figures["conditional"] else "pure noise"


def _name(data: str) -> str:
    return data if data in SPLITS else "folder"


def _scored(experiment: Experiment) -> Scored:
    data, first = experiment.likelihood.data, experiment.likelihood.images or None
    if data not in SPLITS:
        images, names = read_folder(Path(data), experiment.source.shape, experiment.source.levels)
        return _unlabelled(images[:first], names[:first])
    records = experiment.test_records if data == "test" else experiment.train_records
    return _unlabelled(whole(records, "image", first))._replace(labels=experiment.labels_of(records)[:first])


def _unlabelled(images: Images, names: list[str] | None = None) -> Scored:
    labels = np.full(len(images), NO_LABEL, np.int32)
    return Scored(images, [str(n) for n in range(len(images))] if names is None else names, labels)


def _fingerprint(experiment: Experiment, step: int, scored: Scored) -> str:
    content = hashlib.sha256(scored.images.tobytes() + scored.labels.tobytes()).hexdigest()
    return experiment.fingerprint(step, experiment.likelihood, content, scored.names)


def _read(experiment: Experiment, fingerprint: str) -> dict[str, Any] | None:
    try:
        figures = json.loads((experiment.workdir.reports / "likelihood.json").read_text())
    except (OSError, ValueError):
        return None
    made = isinstance(figures, dict) and figures.get("fingerprint") == fingerprint
    return figures if made else None


# --- figures -------------------------------------------------------------------------------------------------------


def _summary(experiment: Experiment, arrays: Arrays) -> dict[str, Any]:
    """Means over the images that converged, of each image's mean over draws; standard errors are those of the mean over
    images. Raises RunFailed where none converged.

    draw_deviation: the standard deviation between the draws of one image, root mean square over images.
    importance_weighted: the bound of all draws of an image together; biased where the trace is an estimate.
    """
    bits = arrays["bits_per_dim"].astype(np.float64)  # (repeats, images)
    repeats, count = bits.shape
    good = np.isfinite(bits).all(axis=0)
    failed = count - int(good.sum())
    if failed:
        say(f"likelihood: {failed} of {count} images did not converge and are left out; raise rtol and atol")
    if failed == count:
        raise RunFailed("the likelihood of no image converged; raise likelihood.rtol and likelihood.atol")
    bits = bits[:, good]
    summary: dict[str, Any] = _mean(bits.mean(axis=0)) | {
        "images": count - failed,
        "failed": failed,
        "evaluations": float(arrays["evaluations"].mean()),
        "draw_deviation": float(np.sqrt(bits.var(axis=0, ddof=1).mean())) if repeats > 1 else None,
        "importance_weighted": None,
        "bound": None,
    }
    if repeats > 1:
        ratio = jnp.asarray((arrays["log_prob"] - arrays["log_q"])[:, good], jnp.float32)
        together = bits_per_dim(importance_weighted(ratio), experiment.dimensions, experiment.levels.width)
        exact = experiment.likelihood.trace == "exact"
        summary["importance_weighted"] = _mean(np.asarray(together, np.float64)) | {"optimistic": not exact}
    if "diffusion" in arrays:
        terms = {name: arrays[name].astype(np.float64)[:, good].mean(axis=0) for name in BoundTerms._fields}
        summary["bound"] = _mean(sum(terms.values())) | {name: float(value.mean()) for name, value in terms.items()}
    return summary


def _mean(per_image: np.ndarray) -> dict[str, float]:
    count = len(per_image)
    error = float(per_image.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0
    return {"bits_per_dim": float(per_image.mean()), "standard_error": error}
