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

See docs/likelihood.md for what each is.
"""

import hashlib
import json
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
from score_sde.data import Prefetched, iterate
from score_sde.data.folder import read_folder
from score_sde.distributed.mesh import by_batch, put_batch, replicated
from score_sde.errors import Checks, RunFailed, UserError
from score_sde.evaluation.metrics import noise_images
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard, run_batches
from score_sde.likelihood import bits_per_dim, importance_weighted, log_likelihood
from score_sde.losses import Times, bound_terms
from score_sde.losses.times import Importance
from score_sde.models.dequantiser import Dequantiser, FlowDequantiser
from score_sde.sde import SDE
from score_sde.training.dequantiser import dequantise, fit, make_fit_step
from score_sde.training.interrupt import StopRequest
from score_sde.training.step import NO_LABEL
from score_sde.typing import Condition, Params
from score_sde.writers import read_arrays, say, write_arrays, write_json

Images = Integer[np.ndarray, "n height width channels"]


class Scored(NamedTuple):
    """The images to score; what each is called; its label, `NO_LABEL` where it has none or the network takes none."""

    images: Images
    names: list[str]
    labels: Integer[np.ndarray, "n"]


SPLITS = ("test", "train")
# Of the two unbiased choices the one with less variance: uniform in log_snr no time has a large weight, uniform in t
# those near t_min have, g²/σ² ~ 1/t.
TIMES = Times(Importance(), low_discrepancy=True)
TERMS = ("prior", "diffusion", "reconstruction")


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
    if settings.dequantisation == "variational":
        _flow(experiment)
        if not _has_bound(experiment):
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
    flow = _trained_flow(experiment, step, params, stop) if settings.dequantisation == "variational" else {}
    if settings.bound_draws and not _has_bound(experiment):
        say("likelihood: no evidence bound of this process, which ends in pure noise or is augmented")
    compute, compile_seconds = _compile(experiment, params, flow)
    noise = _unlabelled(noise_images(experiment.source.shape, levels, settings.noise_images))
    name = _name(settings.data)
    on_data, seconds = _batches(experiment, name, scored, compute, fingerprint, settings.repeats, stop)
    on_noise, noise_seconds = _batches(experiment, "noise", noise, compute, fingerprint, 1, stop)
    figures: dict[str, Any] = {
        "fingerprint": fingerprint,
        "step": step,
        "data": name,
        name: _summary(experiment, on_data),
        "noise": _summary(experiment, on_noise),
        "uniform": math.log2(levels),
        **{key: getattr(settings, key) for key in ("rtol", "atol", "trace", "probes", "repeats", "dequantisation")},
        "exact": isinstance(experiment.sde, SDE),
        "bound_draws": settings.bound_draws if _has_bound(experiment) else 0,
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
        discard(_folder(experiment, part))
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
    text = f"{data['bits_per_dim']:.3f} ± {data['standard_error']:.3f} bits/dim on {title(figures)}"
    if data["importance_weighted"] is not None:
        text += f", {data['importance_weighted']['bits_per_dim']:.3f} with {figures['repeats']} draws weighted"
    if data["bound"] is not None:
        text += f", evidence bound {data['bound']['bits_per_dim']:.3f} ± {data['bound']['standard_error']:.3f}"
    return text


def title(figures: dict[str, Any]) -> str:
    """What the images are called."""
    return f"the {figures['data']} split" if figures["data"] in SPLITS else "the folder's images"


def _name(data: str) -> str:
    return data if data in SPLITS else "folder"


def _scored(experiment: Experiment) -> Scored:
    data = experiment.likelihood.data
    if data not in SPLITS:
        images, names = read_folder(Path(data), experiment.source.shape, experiment.source.levels)
        return _unlabelled(images, names)
    records = experiment.test_records if data == "test" else experiment.train_records
    numbered = _unlabelled(records.arrays["image"])
    return numbered._replace(labels=records.arrays["label"]) if experiment.network.settings.classes else numbered


def _unlabelled(images: Images, names: list[str] | None = None) -> Scored:
    labels = np.full(len(images), NO_LABEL, np.int32)
    return Scored(images, [str(n) for n in range(len(images))] if names is None else names, labels)


def _condition(experiment: Experiment, label: jax.Array) -> Condition:
    return {"label": label} if experiment.network.settings.classes else None


def _fingerprint(experiment: Experiment, step: int, scored: Scored) -> str:
    content = hashlib.sha256(scored.images.tobytes()).hexdigest()
    return experiment.fingerprint(step, experiment.likelihood, content, scored.names)


def _read(experiment: Experiment, fingerprint: str) -> dict[str, Any] | None:
    try:
        figures = json.loads((experiment.workdir.reports / "likelihood.json").read_text())
    except (OSError, ValueError):
        return None
    made = isinstance(figures, dict) and figures.get("fingerprint") == fingerprint
    return figures if made else None


def _has_bound(experiment: Experiment) -> bool:
    return isinstance(experiment.sde, SDE) and not experiment.sde.ends_in_noise


def _folder(experiment: Experiment, part: str) -> Path:
    return experiment.workdir.reports / f".likelihood_{part}"


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
        together = bits_per_dim(importance_weighted(ratio), _dimensions(experiment), experiment.levels.width)
        exact = experiment.likelihood.trace == "exact"
        summary["importance_weighted"] = _mean(np.asarray(together, np.float64)) | {"optimistic": not exact}
    if TERMS[0] in arrays:
        terms = {name: arrays[name].astype(np.float64)[:, good].mean(axis=0) for name in TERMS}
        summary["bound"] = _mean(sum(terms.values())) | {name: float(value.mean()) for name, value in terms.items()}
    return summary


def _mean(per_image: np.ndarray) -> dict[str, float]:
    count = len(per_image)
    error = float(per_image.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0
    return {"bits_per_dim": float(per_image.mean()), "standard_error": error}


def _dimensions(experiment: Experiment) -> int:
    return math.prod(experiment.source.shape)


# --- computation ---------------------------------------------------------------------------------------------------


def _batches(
    experiment: Experiment,
    part: str,
    scored: Scored,
    compute: Callable[..., Arrays],
    fingerprint: str,
    repeats: int,
    stop: StopRequest,
) -> tuple[Arrays, float]:
    """Each figure as `(repeats, n)`, and the seconds it took. The last batch is filled up, and the filling dropped."""
    size, count = experiment.likelihood.batch_size, len(scored.images)
    per_repeat = -(-count // size)

    def one(number: int) -> Arrays:
        repeat, batch = divmod(number, per_repeat)
        index = np.arange(batch * size, (batch + 1) * size)
        start = time.perf_counter()
        arrays = compute(scored.images[index % count], scored.labels[index % count], index, repeat)
        return {**arrays, "seconds": np.float64(time.perf_counter() - start)}

    name = f"likelihood {part}"
    parts = run_batches(name, _folder(experiment, part), fingerprint, repeats * per_repeat, one, stop)
    seconds = float(sum(part.pop("seconds") for part in parts))
    return {key: np.concatenate([p[key] for p in parts]).reshape(repeats, -1)[:, :count] for key in parts[0]}, seconds


def _compile(experiment: Experiment, params: Params, flow: Params) -> tuple[Callable[..., Arrays], float]:
    """(image, label, index, repeat) -> the figures of one batch, as in the module; and the seconds of compiling."""
    settings, levels, dimensions = experiment.likelihood, experiment.levels, _dimensions(experiment)
    draws = settings.bound_draws if _has_bound(experiment) else 0

    def figures(params, flow, image, label, index, repeat) -> dict[str, jax.Array]:
        keys = rng.for_samples(rng.at_step(rng.stream(experiment.seed, "likelihood"), repeat), index)
        denoiser, condition = experiment.denoiser(params), _condition(experiment, label)
        if settings.dequantisation == "variational":
            x, log_q = dequantise(_flow(experiment).apply, flow, levels, image, rng.child(keys, 0))
        else:
            x, log_q = levels.dequantise(image, rng.child(keys, 0)), jnp.zeros(len(image))
        result: Any
        if isinstance(denoiser, AugmentedDenoiser):
            result = log_likelihood_bound(
                denoiser, x, rng.child(keys, 1), condition, rtol=settings.rtol, atol=settings.atol
            )
        else:
            result = log_likelihood(
                denoiser,
                x,
                rng.child(keys, 1),
                rtol=settings.rtol,
                atol=settings.atol,
                condition=condition,
                trace=settings.trace,
                probes=settings.probes,
            )
        bits = bits_per_dim(result.log_prob - log_q, dimensions, levels.width)
        exact = {
            "bits_per_dim": jnp.where(result.failed, jnp.nan, bits),
            "log_prob": result.log_prob,
            "log_q": log_q,
            "evaluations": result.evaluations,
        }
        if not draws:
            return exact

        # One spread of all times of the batch, draw after draw: those of one image are a draws-th of log_snr apart.
        size = len(image)
        own = rng.child(keys, 2)
        times = TIMES.draw(denoiser.sde, own[jnp.arange(draws * size) % size], ())
        rank = _spread(size)
        t, factor = (each.reshape(draws, size)[:, rank] for each in times)

        def one_draw(arguments):
            number, t, factor = arguments
            return bound_terms(denoiser, x, condition, rng.child(own, 1 + number), t, factor)

        terms = jax.tree.map(lambda each: jnp.mean(each, axis=0), jax.lax.map(one_draw, (jnp.arange(draws), t, factor)))
        scaled = {name: value / (dimensions * math.log(2)) for name, value in terms._asdict().items()}
        scaled["reconstruction"] += bits_per_dim(-log_q, dimensions, levels.width)
        return exact | scaled

    whole, split = replicated(experiment.mesh), by_batch(experiment.mesh)
    size = settings.batch_size
    image = jax.ShapeDtypeStruct((size, *experiment.source.shape), jnp.uint8)
    index, repeat = jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    jitted = jax.jit(figures, in_shardings=(whole, whole, split, split, split, whole), out_shardings=split)
    start = time.perf_counter()
    compiled = jitted.lower(params, flow, image, index, index, repeat).compile()
    seconds = time.perf_counter() - start

    def call(image: Images, label: np.ndarray, index: np.ndarray, repeat: int) -> Arrays:
        small = (label.astype(np.int32), index.astype(np.int32), np.int32(repeat))
        return jax.device_get(compiled(params, flow, image, *small))

    return call, seconds


def _spread(size: int) -> Integer[np.ndarray, "size"]:
    """An order of 0 … size − 1 of which any beginning is spread evenly: multiples of the golden ratio, mod 1.

    Of a batch that is filled up only the beginning counts.
    """
    return np.argsort(np.argsort(np.arange(size) * 0.5 * (math.sqrt(5) - 1) % 1))


# --- variational dequantisation ------------------------------------------------------------------------------------


def _flow(experiment: Experiment) -> Dequantiser:
    return Dequantiser(FlowDequantiser(channels=experiment.likelihood.dequantiser_channels), experiment.source.shape)


def _trained_flow(experiment: Experiment, step: int, model: Params, stop: StopRequest) -> Params:
    """The dequantiser's parameters: those in `reports/dequantiser.npz` if trained for this model, else new ones."""
    settings, flow = experiment.likelihood, _flow(experiment)
    size = experiment.training.batch_size
    fixed = (size, settings.dequantiser_steps, settings.dequantiser_learning_rate, settings.dequantiser_channels)
    fingerprint = experiment.fingerprint(step, "dequantiser", *fixed)
    path = experiment.workdir.reports / "dequantiser.npz"
    unfinished = experiment.workdir.reports / ".dequantiser.npz"
    new = lambda: flow.init(rng.stream(experiment.seed, "dequantiser parameters"))
    leaves, structure = jax.tree.flatten(jax.eval_shape(new))
    stored = read_arrays(path)
    if stored is not None and str(stored.get("fingerprint")) == fingerprint and len(stored) == len(leaves) + 1:
        say("likelihood: the dequantiser is trained")
        return jax.tree.unflatten(structure, [jnp.asarray(stored[f"leaf_{n}"]) for n in range(len(leaves))])

    init, fit_step = make_fit_step(
        experiment.denoiser, flow.apply, experiment.levels, settings.dequantiser_learning_rate, experiment.seed
    )
    whole, split = replicated(experiment.mesh), by_batch(experiment.mesh)
    source = iterate(experiment.train_records, size, experiment.seed, jax.process_index(), jax.process_count())
    width = experiment.levels.width
    fields = ("image", "label") if experiment.network.settings.classes else ("image",)
    trained = fit(
        jax.jit(lambda: init(new()), out_shardings=whole)(),
        jax.jit(fit_step, in_shardings=(whole, whole, split), out_shardings=whole, donate_argnums=0),
        model,
        Prefetched(source, lambda batch: put_batch(experiment.mesh, {name: batch[name] for name in fields})),
        steps=settings.dequantiser_steps,
        path=unfinished,
        fingerprint=fingerprint,
        bits=lambda loss: loss / math.log(2) - math.log2(width),
        stop=stop,
    )
    if jax.process_index() == 0:
        arrays = {f"leaf_{number}": leaf for number, leaf in enumerate(jax.device_get(jax.tree.leaves(trained)))}
        write_arrays(path, {"fingerprint": np.asarray(fingerprint), **arrays})
        unfinished.unlink(missing_ok=True)
    return trained
