"""The device mesh, and what is laid out on it how.

The axes are `slice`, `data`, `fsdp` and `tensor`, in this order. Batches are split over the first three. Parameters,
their averages and the optimiser's state are split over `fsdp` and `tensor` (see `sharding`) and repeated over the
others. `slice` is the one that crosses the data-centre network: of several TPU pod slices, or of several hosts of GPUs.
One device is a mesh of one.

Every process runs the same program. `put` and `put_batch` make global arrays of what processes hold on their hosts;
`fetch` gives every process the whole of a global array.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int

from score_sde.errors import Checks, UserError

AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = AXES[:3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Devices along each axis; one of them may be −1, for as many as the others leave.

    data: along the batch. fsdp: along the batch, and parameters and optimiser state are split over them. tensor: the
    widths of attention and of multilayer perceptrons are split over them. slices: parts that are joined by the
    data-centre network, along the batch.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1

    def __post_init__(self) -> None:
        with Checks() as check:
            sizes = self._sizes()
            for name, size in sizes.items():
                check.that(size >= 1 or size == -1, f"{name} must be -1 (what is left) or at least 1, not {size}")
            filled = [name for name, size in sizes.items() if size == -1]
            check.that(len(filled) <= 1, f"only one of {', '.join(filled)} can be -1")

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices`, by default those of all processes. Raises UserError where it does not use each."""
        devices = jax.devices() if devices is None else devices
        sizes, count = self._sizes(), len(devices)
        given = math.prod(size for size in sizes.values() if size != -1)
        left = {name: count // given if size == -1 else size for name, size in sizes.items()}
        if math.prod(left.values()) != count:
            asked = " × ".join(f"mesh.{name}={size}" for name, size in sizes.items())
            raise UserError(
                f"{asked} does not use the {count} device(s) there are; -1 stands for what the others leave"
            )
        shape = (left["data"], left["fsdp"], left["tensor"])
        return Mesh(_arranged(left["slices"], shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _sizes(self) -> dict[str, int]:
        return {"slices": self.slices, "data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


def _arranged(slices: int, shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices as (slices, *shape), neighbours in the last axes near each other."""
    if slices == 1:
        return mesh_utils.create_device_mesh((1, *shape), devices, allow_split_physical_axes=True)
    own = {getattr(device, "slice_index", 0) for device in devices}
    processes = {device.process_index for device in devices}
    if len(own) == slices:
        return mesh_utils.create_hybrid_device_mesh(
            (1, *shape), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu":
        raise UserError(f"mesh.slices={slices} is not the number of slices that the TPUs are in, {len(own)}")
    if len(own) == 1 and len(processes) % slices == 0:  # whole processes, in their order
        return np.asarray(sorted(devices, key=lambda device: (device.process_index, device.id))).reshape(slices, *shape)
    raise UserError(
        f"mesh.slices={slices} parts neither the {len(own)} slice(s) nor the {len(processes)} process(es) evenly"
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all axes that batches are split over."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, where: str) -> None:
    """Raises UserError unless a batch can be split evenly."""
    size = batch_shards(mesh)
    if batch_size % size:
        raise UserError(
            f"{where}={batch_size} is not divisible by the {size} devices it is split over "
            f"(mesh axes {', '.join(BATCH_AXES)}); the nearest is {max(size, round(batch_size / size) * size)}"
        )


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "own"]:
    """Which rows of a global batch the devices of this process hold, in order."""
    parts = by_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts if index is not None]))


def put_batch(mesh: Mesh, batch: Any, batch_size: int) -> Any:
    """Host arrays of this process's `own_rows` as global arrays of `batch_size` rows, split."""
    sharding, rows = by_batch(mesh), own_rows(mesh, batch_size)

    def one(leaf: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return leaf[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), sharding, shard)

    return jax.tree.map(lambda leaf: one(np.asarray(leaf)), batch)


def put(sharding: Sharding, tree: Any) -> Any:
    """Host arrays and random keys, the same on every process, as global arrays; global ones stay where they are."""

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            if leaf.sharding.device_set == sharding.device_set:
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(put(sharding, jax.random.key_data(leaf)))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Global arrays as host arrays, whole, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


@dataclasses.dataclass(frozen=True)
class OverBatch:
    """A compiled function of batches, from host arrays to host arrays. program: what was compiled, in `seconds`."""

    program: jax.stages.Compiled
    mesh: Mesh
    split: tuple[bool, ...]
    seconds: float

    def __call__(self, *arguments: Any) -> Any:
        """The function's results, whole, on every process. Arguments are the same on every process."""
        return fetch(self.program(*_placed(self.mesh, arguments, self.split)))


def compile_over_batch(
    mesh: Mesh, function: Callable[..., Any], arguments: Sequence[Any], split: Sequence[bool]
) -> OverBatch:
    """`function`, whose results are batches, compiled for `arguments`.

    split: which arguments are batches, in whose place their `ShapeDtypeStruct` serves. Of the others, arrays that are
    on the devices stay as they are laid out, and the rest is given to each device.
    """
    start, split = time.perf_counter(), tuple(split)
    jitted = jit_over_batch(mesh, function, split)
    shapes = functools.partial(jax.eval_shape, lambda batch: batch)  # of whole batches, of which a process has a part
    abstract = lambda each, is_batch: shapes(each) if is_batch else _placed(mesh, (each,), (False,))[0]
    program = jitted.lower(*(abstract(*pair) for pair in zip(arguments, split, strict=True))).compile()
    return OverBatch(program, mesh, split, time.perf_counter() - start)


def told(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to be traced knowing the mesh, see `models.layers.by_sample`."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return call


def jit_over_batch(mesh: Mesh, function: Callable[..., Any], split: Sequence[bool]) -> Any:
    """`function`, jitted as `compile_over_batch` compiles it."""
    shardings = tuple(by_batch(mesh) if each else None for each in split)
    return jax.jit(told(mesh, function), in_shardings=shardings, out_shardings=by_batch(mesh))


def _placed(mesh: Mesh, arguments: Sequence[Any], split: Sequence[bool]) -> list[Any]:
    where = {True: by_batch(mesh), False: replicated(mesh)}
    return [put(where[is_batch], each) for each, is_batch in zip(arguments, split, strict=True)]
