"""Features of real data, computed once and kept: what samples are compared with.

They are kept in `evaluation.statistics`, by default `statistics/` in the user's cache folder, as one file for each
split and extractor: `features`, `probabilities` where there are any, their `mu` and `sigma`, and the `record` of what
they are of. They are used again when and only when the split's fingerprint, its number of records and the extractor's
fingerprint are the same. Every record counts once; none is dropped.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_sde.data import Records
from score_sde.distributed.environment import cache_folder
from score_sde.distributed.processes import from_first
from score_sde.errors import UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.features import Features
from score_sde.evaluation.moments import Gaussian, Moments
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, discard, run_batches
from score_sde.training.interrupt import StopRequest
from score_sde.writers import read_arrays, say, write_arrays

BATCH = 256  # records a batch, or a few more
SPLITS = ("train", "test")


def folder(experiment: Experiment) -> Path:
    """Where they are kept."""
    given = experiment.evaluation.statistics
    return Path(given) if given else cache_folder() / "statistics"


def check_folder(path: Path) -> None:
    """Raises UserError where nothing can be kept in it; changes nothing."""
    existing = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {existing} is not a writable directory; set evaluation.statistics")


def features(experiment: Experiment, extractor: Extractor, split: str, stop: StopRequest) -> Features:
    """Of all records of a split; process 0 alone has any where they were kept."""
    records: Records = experiment.train_records if split == "train" else experiment.test_records
    record = {
        "source": experiment.config["data"]["source"],
        "split": split,
        "records": len(records),
        "data": records.fingerprint,
        "extractor": extractor.description,
        "features": extractor.fingerprint,
    }
    text = json.dumps(record, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = f"{record['source'].partition(':')[0]}-{split}-{extractor.name}"
    path = folder(experiment) / f"{name}-{key}.npz"
    kept = read_arrays(path) if jax.process_index() == 0 else None
    sound = kept is not None and str(kept.get("record")) == text
    if bool(from_first(np.asarray(sound))):
        say(f"statistics: {name}, {len(records)} records, is in {path}")
        return _features(kept) if kept is not None else Features(np.zeros((0, extractor.dim), np.float32))
    size = -(-BATCH // extractor.batch_size) * extractor.batch_size

    def compute(number: int) -> Arrays:
        index = np.arange(number * size, min((number + 1) * size, len(records)))
        return as_arrays(extractor(records.gather(index, ("image",))["image"]))

    unfinished = path.with_name(f".{path.stem}")
    parts = run_batches(f"statistics {name}", unfinished, key, -(-len(records) // size), compute, stop)
    found = joined([_features(part) for part in parts])
    if jax.process_index() == 0:
        gaussian = Moments.of(found.features).gaussian()
        own = {**as_arrays(found), "mu": gaussian.mean, "sigma": gaussian.covariance, "record": np.asarray(text)}
        write_arrays(path, own)
    discard(unfinished)
    say(f"statistics: {name}, {len(records)} records by {extractor.description}, in {path}")
    return found


def as_arrays(found: Features) -> Arrays:
    """For a file."""
    given = {} if found.probabilities is None else {"probabilities": found.probabilities}
    return {"features": found.features, **given}


def _features(arrays: Arrays) -> Features:
    return Features(arrays["features"], arrays.get("probabilities"))


def joined(parts: list[Features]) -> Features:
    """All rows, in the parts' order."""
    given = [part.probabilities for part in parts if part.probabilities is not None]
    return Features(np.concatenate([part.features for part in parts]), np.concatenate(given) if given else None)


class Statistics(NamedTuple):
    """Of a file of another project's, or of this one's. extractor: the fingerprint, None where the file has none."""

    gaussian: Gaussian
    extractor: str | None


def foreign(path: Path) -> Statistics:
    """`mu` and `sigma` of a file. Raises UserError where there are none."""
    if not path.is_file():
        raise UserError(f"evaluation.reference={path}: there is no such file; give test, train or a .npz file")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip")
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            record = json.loads(str(arrays["record"])) if "record" in arrays else {}
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"evaluation.reference={path} is no .npz file with mu and sigma: {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"{mean.shape} and {covariance.shape}"
        raise UserError(f"evaluation.reference={path}: mu and sigma are of shapes {shapes}, not (dim,) and (dim, dim)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"evaluation.reference={path}: mu or sigma is not finite")
    return Statistics(Gaussian(mean, covariance), record.get("features"))


def described(experiment: Experiment) -> dict[str, Any]:
    """What samples are compared with, for a report."""
    reference = experiment.evaluation.reference
    if reference not in SPLITS:
        return {"data": reference, "records": None}
    records = experiment.train_records if reference == "train" else experiment.test_records
    return {"data": reference, "records": len(records)}
