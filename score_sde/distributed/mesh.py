"""The device mesh and what is laid out on it how.

The axes are named `data`, `fsdp` and `tensor`; batches are split over `data`, everything else is replicated.
One device is a mesh of one.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from score_sde.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """data: devices along the batch; −1 takes all there are."""

    data: int = -1

    def __post_init__(self) -> None:
        if self.data == 0 or self.data < -1:
            raise UserError(f"data must be -1 (all devices) or at least 1, not {self.data}")

    def build(self) -> Mesh:
        """The mesh over the devices of all processes. Raises UserError where it does not use each of them."""
        devices = jax.device_count()
        data = devices if self.data == -1 else self.data
        if data != devices:
            raise UserError(f"mesh.data={data} does not use the {devices} device(s) there are; -1 takes all")
        return jax.make_mesh((data, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int, where: str) -> None:
    """Raises UserError unless the `data` axis divides batch_size."""
    size = mesh.shape["data"]
    if batch_size % size:
        raise UserError(
            f"{where}={batch_size} is not divisible by the {size} devices of mesh axis 'data'; "
            f"the nearest is {max(size, round(batch_size / size) * size)}"
        )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Host arrays, each process's own part of the global batch, as global arrays split over `data`."""
    sharding = by_batch(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
