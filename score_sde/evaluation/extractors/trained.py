"""Classifiers that this project trains itself when they are first asked for, and keeps in the user's cache folder.

A file there is named by a fingerprint of all that its parameters depend on: the images and labels, the network and the
recipe, the version of this code and of jax. It is written whole or not at all, and holds the accuracy on test images.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from score_sde.data import Records, Source, whole
from score_sde.distributed.environment import cache_folder
from score_sde.distributed.processes import from_first
from score_sde.errors import UserError
from score_sde.evaluation.extractors.base import REVISION, Extractor, OverBatches, whole_batches
from score_sde.evaluation.resize import as_pixels
from score_sde.models import FeatureNetwork
from score_sde.models.functional import Path as ParameterPath
from score_sde.models.small_cnn import SmallCNN
from score_sde.pretrained.tensors import flat
from score_sde.training.image_classifier import Recipe, accuracy, train
from score_sde.typing import Params
from score_sde.writers import read_arrays, say, write_arrays

BATCH_SIZE = 256
SEPARATOR = "/"  # in the names of a file's arrays
CENTRE = SCALE = 127.5


def check_shape(name: str, source: Source, shape: tuple[int, ...]) -> None:
    """Raises UserError where images are not like the source's."""
    if shape != source.shape:
        raise UserError(f"the extractor {name!r} is for images of shape {source.shape}, not {shape}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """name: of the extractor. source: of the images that it learns from, its training split."""

    name: str
    source: Source
    network: SmallCNN
    recipe: Recipe

    def extractor(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> Extractor:
        """The extractor. Raises UserError where the images are not like the source's."""
        check_shape(self.name, self.source, shape)
        network = FeatureNetwork(self.network, shape)
        arrays = self.arrays(network)
        params = nested({path: arrays[name] for name, path in named(network).items()})
        digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in named(network))).hexdigest()
        size = whole_batches(mesh, BATCH_SIZE)
        return Extractor(
            name=self.name,
            shape=shape,
            levels=levels,
            resolution=(shape[0], shape[1]),
            resampling="",
            preprocessing=f"(x - {CENTRE})/{SCALE}",
            weights=digest,
            dim=self.network.features,
            classes=self.network.classes,
            learnt_from=self.source.split("train").fingerprint,
            batch_size=size,
            compute=OverBatches(
                network=network, params=params, prepare=lambda x: scaled(x, levels), mesh=mesh, batch_size=size
            ),
        )

    def arrays(self, network: FeatureNetwork) -> dict[str, np.ndarray]:
        """The parameters by name, from the cache or newly trained; the same on every process, as process 0 has them."""
        train_split, test_split = self.source.split("train"), self.source.split("test")  # missing ones are told by all
        known = network.parameters()
        if jax.process_index() == 0:
            own = self._kept_or_trained(network, train_split, test_split)
        else:
            own = {name: np.zeros(known[path].shape, np.float32) for name, path in named(network).items()}
        return {name: from_first(own[name]) for name in named(network)}

    def _kept_or_trained(self, network: FeatureNetwork, train_split: Records, test_split: Records) -> dict[str, Any]:
        file = self._file(train_split)
        kept = read_arrays(file) if file else None
        if kept and named(network).keys() <= kept.keys():
            return kept
        say(f"{self.name}: to be trained on {len(train_split)} images, once" + (f"; kept as {file}" if file else ""))
        images, tests = (scaled(whole(each, "image"), self.source.levels) for each in (train_split, test_split))
        params = train(self.name, network, images, whole(train_split, "label"), self.recipe)
        right = accuracy(network, params, tests, whole(test_split, "label"))
        say(f"{self.name}: accuracy on {len(tests)} test images {right:.4f}")
        arrays = {SEPARATOR.join(map(str, path)): value for path, value in flat(params)}
        if file:
            _keep(file, {**arrays, "accuracy": np.float64(right)})
        return arrays

    def _file(self, records: Records) -> Path | None:
        """Where the parameters are kept, None where there is no home."""
        folder = cache_folder()
        if not folder.is_absolute():
            return None
        digest = hashlib.sha256(records.fingerprint.encode())
        settings = [dataclasses.asdict(each) for each in (self.network, self.recipe)]
        digest.update(json.dumps([REVISION, jax.__version__, self.source.levels, settings]).encode())
        return folder / "classifiers" / f"{self.name}-{digest.hexdigest()[:16]}.npz"


def scaled(images: np.ndarray, levels: int) -> np.ndarray:
    """Levels in [−1, 1]."""
    return (as_pixels(images, levels) - np.float32(CENTRE)) / np.float32(SCALE)


def named(network: FeatureNetwork) -> dict[str, ParameterPath]:
    """The paths of a network's parameters by their names in a file."""
    return {SEPARATOR.join(map(str, path)): path for path in sorted(network.parameters(), key=str)}


def nested(arrays: dict[ParameterPath, np.ndarray]) -> Params:
    """Parameters by their paths as nested dicts."""
    params: dict[Any, Any] = {}
    for path, value in arrays.items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return params


def _keep(file: Path, arrays: dict[str, Any]) -> None:
    """Writes a file, also where another process writes the same one now; not where the folder cannot be written to."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            write_arrays(Path(folder) / file.name, arrays)
            os.replace(Path(folder) / file.name, file)
    except OSError as error:
        say(f"{file} cannot be kept ({error}): it will be trained again")
