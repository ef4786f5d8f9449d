"""How parameters are laid out on the mesh: `RULES`, one table from logical axes to mesh axes, and `fsdp` for the rest.

Of each parameter, an axis named in `RULES` is split over that mesh axis; then, of the axes that are still whole and
that the size of `fsdp` divides, the longest that it divides into whole tiles, or else the longest, is split over
`fsdp`. Small parameters stay whole: to gather them would cost more than it saves. What cannot be split, because no
axis is divided, is whole on every device and `Layout.lines` says so.

The averages and the optimiser's moments are laid out as their parameters: a leaf of the state is a parameter's where
its path ends in the parameter's and the shapes are equal. All else is whole on every device.

    gather of each of P parameters, forward and backward, and a scatter of its gradient: 12 P (n − 1)/n bytes sent a
    step and device over fsdp = n, 8 of them where the computation is in bfloat16, against 8 P (n − 1)/n for the
    reduction of the gradient where all is replicated
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from clu import parameter_overview
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: dict[str, str] = {  # logical axis of a parameter, see `models.layers`: axis of the mesh
    "heads": "tensor",
    "mlp": "tensor",
}
SMALLEST = 2**14  # values of a parameter, below which it is not split over fsdp
TILE = 8  # rows of float32, in which gradients are summed, in a tile of a TPU's memory


class Described(Protocol):
    """What is asked of a parameter."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def axes(self) -> tuple[str | None, ...]: ...


class Placed(NamedTuple):
    """Where a parameter lies. unsplit: the mesh axes that should split it and divide none of its axes."""

    shape: tuple[int, ...]
    spec: PartitionSpec
    unsplit: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of every parameter on a mesh, by its path."""

    mesh: Mesh
    placed: dict[tuple[Any, ...], Placed]

    @staticmethod
    def of(mesh: Mesh, parameters: Mapping[tuple[Any, ...], Described]) -> "Layout":
        """By `RULES`."""
        return Layout(mesh, {path: place(mesh, each.shape, each.axes) for path, each in parameters.items()})

    def shardings(self, state: Any) -> Any:
        """The sharding of each leaf of a state, or of its shapes."""
        return jax.tree.map_with_path(lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf)), state)

    def _spec(self, path: Any, leaf: Any) -> PartitionSpec:
        keys = tuple(_key(entry) for entry in path)
        for start in range(len(keys)):
            found = self.placed.get(keys[start:])
            if found is not None:
                return found.spec if found.shape == tuple(leaf.shape) else PartitionSpec()
        return PartitionSpec()

    def bytes_per_device(self) -> int:
        """Of float32 parameters."""
        return sum(4 * math.prod(each.shape) // parts(self.mesh, each.spec) for each in self.placed.values())

    def lines(self) -> Iterator[str]:
        """What a user must know of it: parameters that should be split and cannot."""
        for axis in ("fsdp", "tensor"):
            whole = {path: each for path, each in self.placed.items() if axis in each.unsplit}
            if not whole:
                continue
            size, total = self.mesh.shape[axis], sum(math.prod(each.shape) for each in self.placed.values())
            share = sum(math.prod(each.shape) for each in whole.values()) / total
            path, largest = max(whole.items(), key=lambda item: math.prod(item[1].shape))
            name, shape = ".".join(map(str, path)), "×".join(map(str, largest.shape))
            line = (
                f"mesh.{axis}={size} leaves {len(whole)} parameters, {share:.1%} of their values, whole on every device"
            )
            yield f"{line}: it divides no axis of theirs ({name} is {shape}); {_better(size, whole, axis)}"

    def untiled(self) -> Iterator[str]:
        """What it costs on TPUs that fsdp splits the kernels of convolutions into parts that are no whole tiles.

        Their gradients are reduced whole and then cut, of which twice as much is sent as by a scatter. Seen of libtpu
        0.0.52, on 3×3 kernels alone; matrices it pads to whole tiles.
        """
        size = self.mesh.shape["fsdp"]
        split = [each for each in self.placed.values() if "fsdp" in each.spec]
        kernels = [(each, each.shape[each.spec.index("fsdp")]) for each in split if len(each.shape) > 2]
        cut = [each for each, side in kernels if side // size % TILE]
        if not cut:
            return
        total = sum(math.prod(each.shape) for each in self.placed.values())
        share = sum(math.prod(each.shape) for each in cut) / total
        whole = lambda n: all(side // n % TILE == 0 for _, side in kernels)
        best = max((n for n in range(2, size) if size % n == 0 and whole(n)), default=None)
        other = "" if best is None else f"; mesh.fsdp={best} would split all into whole ones"
        yield (
            f"mesh.fsdp={size} splits {len(cut)} kernels, {share:.1%} of all values, into parts that are no multiple "
            f"of {TILE} rows: a TPU reduces their gradients whole, and sends twice as much{other}"
        )


def overview(params: Any) -> str:
    """A table of parameters that lie on the mesh: shape, how each axis is split, and bytes on a device."""
    rows = []
    for path, leaf in jax.tree.leaves_with_path(params):
        split = ", ".join(str(axis) for axis in (*leaf.sharding.spec, *(None,) * leaf.ndim)[: leaf.ndim])
        own = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        rows.append(_Row(".".join(str(_key(each)) for each in path), str(leaf.shape), f"({split})", own))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    held = sum(row.bytes_a_device for row in rows)
    return parameter_overview.make_table(rows) + f"\nTotal: {total:,} parameters, {held:,} bytes a device"


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    shape: str
    split: str
    bytes_a_device: int


def place(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Placed:
    """A parameter's place, by its shape and logical axes."""
    spec: list[str | None] = [None] * len(shape)
    unsplit = []
    for number, name in enumerate(axes):
        axis = RULES.get(name) if name else None
        if axis is None or mesh.shape[axis] == 1:
            continue
        if shape[number] % mesh.shape[axis]:
            unsplit.append(axis)
        elif axis not in spec:
            spec[number] = axis
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and math.prod(shape) >= SMALLEST:
        fitting = [number for number, side in enumerate(shape) if spec[number] is None and side % fsdp == 0]
        if fitting:
            tiled = lambda number: shape[number] // fsdp % TILE == 0
            spec[max(fitting, key=lambda number: (tiled(number), shape[number]))] = "fsdp"
        else:
            unsplit.append("fsdp")
    return Placed(shape, PartitionSpec(*spec), tuple(unsplit))


def parts(mesh: Mesh, spec: PartitionSpec) -> int:
    """Into how many different parts an array of this spec is split."""
    return math.prod(mesh.shape[axis] for axis in spec if axis is not None)


def _better(size: int, whole: Mapping[Any, Placed], axis: str) -> str:
    """The largest smaller size of the axis that would split all of them."""
    sides = [[side for side in each.shape if side > 1] for each in whole.values()]
    fits = lambda n: all(any(side % n == 0 for side in each) for each in sides)
    best = max(n for n in range(1, size + 1) if size % n == 0 and fits(n))
    return f"mesh.{axis}={best} would split all, with the rest on mesh.data" if best > 1 else "no smaller size would"


def _key(entry: Any) -> Any:
    """The name, key or number of one entry of a path."""
    for field in ("key", "name", "idx"):
        if hasattr(entry, field):
            return getattr(entry, field)
    return entry
