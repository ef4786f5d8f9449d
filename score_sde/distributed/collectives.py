"""What the devices of a compiled program send one another.

Of n devices in a group, each with B bytes of operands, a ring sends from each device

    all-gather                   (n − 1) B         B is the device's part of the result
    reduce-scatter               (n − 1)/n B
    all-reduce                 2 (n − 1)/n B       a reduce-scatter and an all-gather
    all-to-all                   (n − 1)/n B
    collective-permute                   B

(Patarasu & Yuan 2009), which none can undercut. On a TPU they stand in the HLO in several forms, each counted once:
plain; `-start` with `-done`; three fusions, of `AsyncCollectiveStart`, the work done meanwhile, and
`AsyncCollectiveDone`, with the collective in each; and a reduce-scatter as a fusion of an all-reduce and a slice.

What crosses from slice to slice goes over the hosts' network: a `send` to the host and a `recv` from it, which say what
the hosts do with it meanwhile. A chip's part is counted by the same formulas, of groups with one member in each slice,
and as overlapped by nothing: gradients, which it mostly is, are there when little is left to do.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from score_sde.distributed import hlo
from score_sde.distributed.hlo import Instruction, Program

SENT = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}

ACROSS = {  # what hosts do with what a chip sends them for other slices
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
ID = 100_000  # a chip is named by this times the number of its slice, and its own number in it

START = "AsyncCollectiveStart"
Groups = list[list[int]]  # of places in the mesh's order of devices


class Collective(NamedTuple):
    """operands: bytes of one device's. devices: in a group. axes: of the mesh that groups extend along.

    runs: how often. overlapped: whether other work goes on meanwhile. source: the operation that it belongs
    to, as traced.
    """

    kind: str
    operands: int
    devices: int
    axes: tuple[str, ...]
    runs: int
    overlapped: bool
    source: str

    @property
    def sent(self) -> float:
        """Bytes that one device sends, over all runs."""
        return self.runs * self.operands * SENT[self.kind](self.devices)

    @property
    def whole(self) -> int:
        """The bytes of what it handles, before it is split or after it is joined."""
        return self.operands * self.devices if self.kind == "all-gather" else self.operands


def collectives(program: Program, mesh: Mesh, unknown: int = 1) -> list[Collective]:
    """All that a program over the mesh holds, without those among groups of one device; see `Program.executions`."""
    executions = program.executions(unknown)
    fused = {
        callee
        for computation in program.computations.values()
        for each in computation.values()
        if each.opcode == "fusion"
        for callee in each.called("calls")
    }
    found, started = [], _started(program)
    for name in program.computations:
        if name in fused or not executions.get(name):
            continue
        for holder, each in _within(program, name):
            if each.opcode == "send":
                found.append(_across(program.computations[holder], each, mesh, executions[name]))
                continue
            if _channel(each) in started and not _has(program.computations[holder], START):
                continue  # the work done meanwhile, or the end, of what is counted at its start
            collective = _collective(program.computations[holder], each, mesh, executions[name])
            if collective.devices > 1:
                found.append(collective)
    return found


def _started(program: Program) -> set[str]:
    """The channels of the collectives that start in a fusion and end in another."""
    starts = [computation for computation in program.computations.values() if _has(computation, START)]
    return {_channel(each) for computation in starts for each in computation.values() if _kind(each) is not None}


def _has(computation: dict[str, Instruction], target: str) -> bool:
    return any(target in each.attributes for each in computation.values() if each.opcode == "custom-call")


def _channel(instruction: Instruction) -> str:
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    return channel[1] if channel else instruction.name


def _within(program: Program, name: str) -> list[tuple[str, Instruction]]:
    """The collectives of a computation and of its fusions, each with the computation that it stands in."""
    found = []
    for each in program.computations[name].values():
        if _kind(each) is not None:
            found.append((name, each))
        elif each.opcode == "fusion":
            for callee in each.called("calls"):
                found += _within(program, callee)
    return found


def _kind(instruction: Instruction) -> str | None:
    if instruction.opcode == "send":
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        if between and between[1] not in ACROSS:
            raise ValueError(f"sent between slices in no known form: {between[1]}")
        return ACROSS[between[1]] if between else None
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in SENT else None


def _collective(computation: dict[str, Instruction], instruction: Instruction, mesh: Mesh, runs: int) -> Collective:
    kind = _kind(instruction)
    assert kind is not None
    if kind == "all-reduce" and _is_sliced(computation, instruction):
        kind = "reduce-scatter"
    groups = _groups(instruction.attributes, mesh.size)
    operands = sum(hlo.size(computation[operand].type) for operand in instruction.operands)
    overlapped = instruction.opcode.endswith("-start") or _has(computation, START)
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    # A permutation's groups are pairs of sender and receiver, some of which may be one device.
    devices = max(len(set(group)) for group in groups)
    return Collective(kind, operands, devices, _axes(groups, mesh), runs, overlapped, source[1] if source else "")


def _across(computation: dict[str, Instruction], sent: Instruction, mesh: Mesh, runs: int) -> Collective:
    """What a chip sends to others by its host."""
    kind = _kind(sent)
    assert kind is not None
    # Slices and the chips of each, `{1,2}x{0:15}`, or groups of chips, `{{100000,200000},{100001,200001}}`.
    target = re.search(r"_xla_megascale_target=\"?\{+([^}]*)\}", sent.attributes)
    assert target is not None
    members = [int(each) for each in re.findall(r"\d+", target[1])]
    slices = len({each // ID if each >= ID else each for each in members})
    index = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat]).reshape(mesh.devices.shape)
    axes = tuple(name for axis, name in enumerate(mesh.axis_names) if np.any(np.diff(index, axis=axis)))
    source = re.search(r'op_name="([^"]*)"', sent.attributes)
    return Collective(
        kind, hlo.size(computation[sent.operands[0]].type), slices, axes, runs, False, source[1] if source else ""
    )


def _is_sliced(computation: dict[str, Instruction], summed: Instruction) -> bool:
    """Whether of every sum only a slice, the device's own part, is kept."""
    own = {summed.name} | {
        each.name
        for each in computation.values()
        if each.opcode == "get-tuple-element" and each.operands == (summed.name,)
    }
    users = [each for each in computation.values() if own & set(each.operands) and each.name not in own]
    sliced = [each for each in users if each.opcode == "dynamic-slice"]
    return len(sliced) == len(users) == len(summed.operands)


def _groups(attributes: str, devices: int) -> Groups:
    """The groups, in any of the ways that XLA writes them. Raises ValueError for another."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        return _lists(pairs[1])
    explicit = re.search(r"replica_groups=\{(.*?)\}(?:,|$)", attributes)
    if explicit and "{" in explicit[1]:
        return _lists(attributes[explicit.start() :].partition("={")[2].partition("}}")[0])
    if explicit:  # {}: all
        return [list(range(devices))]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_ints(iota[1])).tolist()
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", attributes
    )
    if mesh:
        names, sides = zip(*re.findall(r"'([^']*)'=(\d+)", mesh[1]), strict=True)
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(map(int, sides)))
        along = re.findall(r"'([^']*)'(:?)", mesh[4])
        if all(not part for _, part in along):
            of = [names.index(name) for name, _ in along]
            rest = [axis for axis in range(len(names)) if axis not in of]
            together = math.prod(int(sides[axis]) for axis in of)
            return ids.reshape([int(side) for side in sides]).transpose(*rest, *of).reshape(-1, together).tolist()
    raise ValueError(f"groups of devices in no known form: {attributes[:200]}")


def _lists(text: str) -> Groups:
    return [[int(each) for each in group.split(",")] for group in re.findall(r"[\d,]+\d|\d", text.replace("},{", " "))]


def _ints(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
    sides = _ints(shape)
    ids = np.arange(math.prod(sides)).reshape(sides)
    return (ids.transpose(_ints(order)) if order else ids).reshape(-1)


def _axes(groups: Groups, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the members of a group differ."""
    places = np.stack(np.unravel_index(np.arange(mesh.size), mesh.devices.shape), axis=-1)
    differ = np.zeros(places.shape[-1], bool)
    for group in groups:
        differ |= np.any(places[group] != places[group[0]], axis=0)
    return tuple(name for name, along in zip(mesh.axis_names, differ, strict=True) if along)
