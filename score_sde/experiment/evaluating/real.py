"""Features of real data, computed once and kept: what samples are compared with.

They are kept in `evaluation.statistics`, by default `statistics/` in the user's cache folder, as one file for each
split and extractor: `features`, `probabilities` where there are any, their `mu` and `sigma` where these are no larger
than the features of many, and the `record` of what they are of. They are used again when and only when the split's
fingerprint, its number of records and the extractor's fingerprint are the same. Every record counts once; none is
dropped. Features of pure noise are kept beside them.

Of several runs that need the same at once, one makes it and the others wait.
"""

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from score_sde.data import Records
from score_sde.distributed.environment import cache_folder
from score_sde.distributed.processes import from_first
from score_sde.errors import DAMAGED_NPZ, UserError
from score_sde.evaluation.extractors import Extractor
from score_sde.evaluation.features import Features
from score_sde.evaluation.frechet import root
from score_sde.evaluation.halves import noise_images
from score_sde.evaluation.moments import Gaussian, Moments
from score_sde.experiment.base import Experiment
from score_sde.experiment.batches import Arrays, alone, discard, run_batches
from score_sde.training.interrupt import StopRequest
from score_sde.writers import read_arrays, say, write_arrays

BATCH = 256  # records a batch, or a few more
ASYMMETRY = 1e-5  # of the largest value: what a sigma stored in float32 may have
LARGEST_SIGMA = 4096  # features whose covariance is kept, of 128 MiB
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
    records = records_of(experiment, split)
    source = experiment.config["data"]["source"]
    told = {"source": source, "split": split, "data": records.fingerprint}
    images = lambda index: records.gather(index, ("image",))["image"]
    name = f"{source.partition(':')[0]}-{split}-{extractor.name}"
    return _Wanted(folder(experiment), name, told, extractor, len(records), images).features(stop)


def noise(experiment: Experiment, extractor: Extractor, count: int, stop: StopRequest) -> Features:
    """Of so many `halves.noise_images`; process 0 alone has any where they were kept."""
    told = {"source": "noise", "shape": extractor.shape, "levels": extractor.levels}
    images = lambda index: noise_images(extractor.shape, extractor.levels, index)
    return _Wanted(folder(experiment), f"noise-{extractor.name}", told, extractor, count, images).features(stop)


def records_of(experiment: Experiment, split: str) -> Records:
    """Those of a row of `SPLITS`."""
    return experiment.train_records if split == "train" else experiment.test_records


@dataclasses.dataclass(frozen=True, eq=False)
class _Wanted:
    """Features of images(0 … count − 1), to be kept in the folder `home`. told: what the images are."""

    home: Path
    name: str
    told: dict[str, Any]
    extractor: Extractor
    count: int
    images: Callable[[Int[np.ndarray, "n"]], np.ndarray]

    @property
    def record(self) -> str:
        extractor = {"extractor": self.extractor.description, "features": self.extractor.fingerprint}
        return json.dumps(self.told | {"records": self.count} | extractor, sort_keys=True)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.record.encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        return self.home / f"{self.name}-{self.key}.npz"

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f".{self.path.stem}")

    def features(self, stop: StopRequest) -> Features:
        """As kept, or made now."""
        kept = self._kept()
        if kept is None:
            with alone(self.path.with_name(f".{self.path.stem}.lock"), f"statistics {self.name}", stop):
                kept = self._kept()  # another run may have made them meanwhile
                if kept is None:
                    return self._made(stop)
        discard(self._unfinished)  # of a run that died before it could
        say(f"statistics: {self.name}, {self.count} records, is in {self.path}")
        return kept

    def _kept(self) -> Features | None:
        """None, on all processes, where there is nothing or something else."""
        arrays = read_arrays(self.path) if jax.process_index() == 0 else None
        whole = arrays is not None and len(arrays.get("features", ())) == self.count
        sound = whole and arrays is not None and str(arrays.get("record")) == self.record
        if not bool(from_first(np.asarray(sound))):
            return None
        return Features(np.zeros((0, self.extractor.dim), np.float32)) if arrays is None else _features(arrays)

    def _made(self, stop: StopRequest) -> Features:
        size = -(-BATCH // self.extractor.batch_size) * self.extractor.batch_size

        def compute(number: int) -> Arrays:
            index = np.arange(number * size, min((number + 1) * size, self.count))
            return as_arrays(self.extractor(self.images(index)))

        count = -(-self.count // size)
        key = f"{self.key}-{size}"  # batches of another size are of other records
        parts = run_batches(f"statistics {self.name}", self._unfinished, key, count, compute, stop)
        found = joined([_features(part) for part in parts])
        if jax.process_index() == 0:
            own = {**as_arrays(found), "record": np.asarray(self.record)}
            if self.extractor.dim <= LARGEST_SIGMA and self.count > 1:
                gaussian = Moments.merged(Moments.of(part["features"]) for part in parts).gaussian()
                own |= {"mu": gaussian.mean, "sigma": gaussian.covariance}
            write_arrays(self.path, own)
        discard(self._unfinished)
        say(f"statistics: {self.name}, {self.count} records by {self.extractor.description}, in {self.path}")
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
            mean, covariance = (
                np.asarray(arrays[name]).astype(np.float64, casting="same_kind") for name in ("mu", "sigma")
            )
            record = json.loads(str(arrays["record"])) if "record" in arrays else {}
            extractor = record.get("features") if isinstance(record, dict) else None
    except DAMAGED_NPZ as error:
        raise UserError(f"evaluation.reference={path} is no .npz file with mu and sigma: {error}") from error
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        shapes = f"{mean.shape} and {covariance.shape}"
        raise UserError(f"evaluation.reference={path}: mu and sigma are of shapes {shapes}, not (dim,) and (dim, dim)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"evaluation.reference={path}: mu or sigma is not finite")
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * np.abs(covariance).max():
        raise UserError(f"evaluation.reference={path}: sigma is not symmetric")
    try:
        root(covariance)
    except UserError as error:
        raise UserError(f"evaluation.reference={path}: sigma is {error}") from error
    return Statistics(Gaussian(mean, covariance), extractor)


def described(experiment: Experiment) -> dict[str, Any]:
    """What samples are compared with, for a report."""
    reference = experiment.evaluation.reference
    if reference not in SPLITS:
        return {"data": reference, "records": None}
    return {"data": reference, "records": len(records_of(experiment, reference))}
