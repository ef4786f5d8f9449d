"""What an extractor is: settings that build, for images of one kind, a function from them to `Features`."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Integer

from score_sde.distributed.mesh import OverBatch, batch_shards, compile_over_batch, put, replicated
from score_sde.errors import UserError
from score_sde.evaluation.features import Features
from score_sde.evaluation.metrics import METRICS
from score_sde.models import FeatureNetwork
from score_sde.typing import Params

Levels = Integer[np.ndarray, "n height width channels"]
REVISION = 1  # to be raised where the same settings and weights give other features than before


class Settings(Protocol):
    """A row of `EXTRACTORS`: a frozen dataclass of settings. CLASSES: that its extractor tells apart, 0 for none.
    DIM: of its features, 0 for as many as an image has values. LEARNS_FROM: the kind of source that it is trained on,
    None where it is not: settings that both have are the data's where these are of that kind, and they are left out."""

    CLASSES: ClassVar[int]
    DIM: ClassVar[int]
    LEARNS_FROM: ClassVar[type | None]

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises UserError where it is not for images of `shape`, or lacks its weights or what it learns from; trains
        none."""
        ...

    def build(self, shape: tuple[int, ...], levels: int, mesh: Mesh) -> "Extractor":
        """The extractor for images of `shape`, (height, width, channels), and so many `levels`.

        Reads weights, or trains them where they are not there yet. Raises UserError where it cannot be had, or is not
        for such images.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """Images of integer levels to features; the same image gives the same features whatever stands beside it.

    shape, levels: of the images. resolution: (height, width) at which features are taken. resampling: to it, a row of
    `resize.RESAMPLINGS`, "" where images are taken as they are. preprocessing: the rest of what is done to them.
    weights: the SHA-256 of what it has learnt, "" for nothing. dim: of features. classes: that it tells apart, 0 for
    none. learnt_from: the fingerprint of the records that it has learnt these classes from, "" where it is not known.
    is_fid: whether a Fréchet distance of its features may be called FID. batch_size: images computed together; a
    multiple of it leaves none of a batch empty.
    """

    name: str
    shape: tuple[int, ...]
    levels: int
    resolution: tuple[int, ...]
    resampling: str
    preprocessing: str
    weights: str
    dim: int
    classes: int
    batch_size: int
    compute: Callable[[Levels], Features]
    learnt_from: str = ""
    is_fid: bool = False

    @property
    def description(self) -> str:
        """One line, to be printed with every number: extractor, resolution, resampling, weights."""
        weights = f", weights {self.weights[:8]}" if self.weights else ""
        size = f" at {'x'.join(map(str, self.resolution))}" if self.resolution else ""
        return f"{self.name}{size}, {self.resampling or 'not resampled'}{weights}"

    def title(self, metric: str) -> str:
        """What the row `metric` of `METRICS` is called with these features."""
        return "FID" if self.is_fid and metric == "frechet" else f"{METRICS[metric].title} ({self.name})"

    @property
    def fingerprint(self) -> str:
        """Of all that features depend on but the images: numbers may be compared where it is the same."""
        parts = [REVISION, self.name, self.resolution, self.resampling, self.preprocessing, self.weights]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def __call__(self, images: Levels) -> Features:
        """Features of all the images, on every process, each of which gives the same images."""
        if images.shape[1:] != self.shape:
            raise UserError(f"{self.name} was built for images of shape {self.shape}, not {images.shape[1:]}")
        return self.compute(images)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OverBatches:
    """A network's features and probabilities of images, in batches of one size over all devices of a mesh.

    prepare: integer levels to what the network takes, on the host. params: of the network; kept on the devices. The
    last batch is filled up, and its filling cut off.
    """

    network: FeatureNetwork
    params: Params
    prepare: Callable[[Levels], Float32[np.ndarray, "n height width channels"]]
    mesh: Mesh
    batch_size: int

    def __call__(self, images: Levels) -> Features:
        """Of as many images as there are."""
        starts = range(0, max(1, len(images)), self.batch_size)  # of no images, an empty batch says the shapes
        found = [self._of_batch(images[start : start + self.batch_size]) for start in starts]
        return Features(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def _of_batch(self, images: Levels) -> tuple[np.ndarray, ...]:
        x = self.prepare(images)
        filling = np.zeros((self.batch_size - len(x), *x.shape[1:]), np.float32)
        outputs = self._program(self._placed, np.concatenate([x, filling]))
        return tuple(np.asarray(output)[: len(x)] for output in outputs)

    @property
    def _like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch_size, *self.network.shape), jnp.float32)

    @functools.cached_property
    def _placed(self) -> Params:
        return put(replicated(self.mesh), self.params)

    @functools.cached_property
    def _program(self) -> OverBatch:
        return compile_over_batch(self.mesh, self._outputs, (self._placed, self._like), (False, True))

    def _outputs(
        self, params: Params, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch classes"]]:
        with jax.default_matmul_precision("float32"):  # GPUs and TPUs would round to fewer bits
            features, logits = self.network.apply(params, x)
        return features, jax.nn.softmax(logits)


def whole_batches(mesh: Mesh, batch_size: int) -> int:
    """The batch size, or a little more, such that a batch is split evenly over the mesh."""
    shards = batch_shards(mesh)
    return -(-batch_size // shards) * shards
