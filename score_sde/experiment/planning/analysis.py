"""What a compiled program needs of each chip, against what the chip has and what its layout must send.

Of P parameters, whose gathers take b bytes each, of the precision of the computation, and whose sums take 4, of
float32, a step must send, from each of n devices,

    replicated             2 · 4 P (n − 1)/n               the gradient's mean
    split over n devices   (2 b + 4) P (n − 1)/n           gathered forward and backward, the gradient scattered
    and over r groups      2 · 4 (P/n) (r − 1)/r besides   the mean of each part of the gradient

and the gathers and the scattered gradients once for each micro-batch. Where the r groups are in s slices, q in each,
the mean of a part of p = 4 P/n bytes is taken in three steps, so that the least crosses the data centre's network:

    scattered in a slice   p (q − 1)/q
    between slices         2 (p/q) (s − 1)/s
    gathered in a slice    p (q − 1)/q
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from score_sde.distributed import hlo, products
from score_sde.distributed.chips import GIB, Chip
from score_sde.distributed.collectives import Collective, collectives
from score_sde.distributed.mesh import BATCH_AXES
from score_sde.distributed.roofline import Roofline, roofline
from score_sde.errors import RunFailed

BYTES = {"float32": 4, "bfloat16": 2}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes of one chip. arguments: the state and the batch. results: those that take no argument's place.

    temporaries: all between. code: the program itself.
    """

    arguments: int
    results: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.results + self.temporaries + self.code


class Analysis(NamedTuple):
    """Of one program, and of one chip. accessed: bytes that its operations read and write."""

    memory: Memory
    flops: float
    accessed: float
    collectives: list[Collective]
    roofline: Roofline | None


class TooLarge(NamedTuple):
    """A program that the compiler gave up on: the bytes that it needs, by its own account, and those that there are."""

    needed: float
    available: float


def analyse(traced: Any, mesh: Mesh, chip: Chip | None, passes: int = 1) -> Analysis | TooLarge:
    """Compiles a program and reads what came of it. passes: of a loop that is only told how many.

    Raises RunFailed where the compiler fails.
    """
    try:
        compiled = compile_alone(traced)
    except jax.errors.JaxRuntimeError as error:
        return _too_large(str(error))
    sizes, costs = compiled.memory_analysis(), compiled.cost_analysis()
    memory = Memory(
        arguments=sizes.argument_size_in_bytes,
        results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
    )
    program = hlo.parse(compiled.as_text())
    once = products.flops(program, once=True)
    again = products.flops(program, unknown=passes) / once if once else 1.0  # XLA counts the body of a loop once
    flops, accessed = again * costs.get("flops", 0.0), again * costs.get("bytes accessed", 0.0)
    sent = collectives(program, mesh, passes)
    line = None if chip is None else roofline(chip, mesh, flops, accessed, sent)
    return Analysis(memory, flops, accessed, sent, line)


def compile_alone(traced: Any) -> Any:
    """The compiled program."""
    return traced.lower().compile()


def _too_large(message: str) -> TooLarge:
    """What the compiler says of a program that does not fit: "Used 20.1G of 15.75G hbm", or "…(20.1G) exceeds …"."""
    figures = [
        float(size) * UNITS[unit] for size, unit in re.findall(r"\b(\d+\.?\d*)([KMGT]?)\b(?= of|\)| hbm)", message)
    ]
    if "RESOURCE_EXHAUSTED" not in message or len(figures) < 2:
        raise RunFailed(f"the compiler failed: {' '.join(message.split())[:500]}")
    return TooLarge(figures[0], figures[1])


class Sent(NamedTuple):
    """One row of the table of collectives: how often they run, the bytes that a chip sends, and the least."""

    kind: str
    axes: tuple[str, ...]
    runs: int
    sent: float
    least: float


def table(found: Iterable[Collective], least: Mapping[tuple[str, tuple[str, ...]], float]) -> list[Sent]:
    """The collectives by kind and axes, with the minimum of each where the layout has one; the largest first."""
    runs: dict[Any, int] = collections.defaultdict(int)
    sent: dict[Any, float] = collections.defaultdict(float)
    for each in found:
        runs[each.kind, each.axes] += each.runs
        sent[each.kind, each.axes] += each.sent
    rows = [
        Sent(kind, axes, runs[kind, axes], sent[kind, axes], least.get((kind, axes), 0.0))
        for kind, axes in {**runs, **least}
    ]
    return sorted(rows, key=lambda row: -max(row.sent, row.least))


def minimum(params: Any, mesh: Mesh, dtype: str, micro_batches: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """The bytes of the module's table by kind and axes, of parameters with shapes and shardings."""
    least: dict[tuple[str, tuple[str, ...]], float] = collections.defaultdict(float)
    batch_axes = set(BATCH_AXES)
    order = lambda axes: tuple(axis for axis in mesh.axis_names if axis in axes and mesh.shape[axis] > 1)
    devices = lambda axes: math.prod(mesh.shape[axis] for axis in axes)
    for leaf in jax.tree.leaves(params):
        split = names(leaf.sharding.spec)
        gathered, mean = order(split & batch_axes), order(batch_axes - split)
        own = math.prod(leaf.shape) / devices(split - batch_axes)
        size = own * BYTES["float32"]  # of what is summed
        n, r = devices(gathered), devices(mean)
        if n > 1:
            least["all-gather", gathered] += micro_batches * 2 * own * BYTES[dtype] * (n - 1) / n
            least["reduce-scatter", gathered] += micro_batches * size * (n - 1) / n
        within = order(set(mean) - {"slice"})
        q, s = devices(within), r // devices(within)
        if s > 1:
            least["all-reduce", ("slice",)] += 2 * size / n / q * (s - 1) / s
        if s > 1 and q > 1:
            least["reduce-scatter", within] += size / n * (q - 1) / q
            least["all-gather", within] += size / n * (q - 1) / q
        elif q > 1:
            least["all-reduce", within] += 2 * size / n * (q - 1) / q
    return dict(least)


def names(spec: Iterable[Any]) -> set[str]:
    """The axes of a mesh that a partition names."""
    return {name for entry in spec if entry is not None for name in ((entry,) if isinstance(entry, str) else entry)}


def state_bytes(state: Any) -> int:
    """Of one chip, by shapes and shardings."""
    own = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(own(leaf) for leaf in jax.tree.leaves(state))


POWERS = [2**power for power in range(1, 12)]


def remedies(
    state: float,
    rest: float,
    available: float,
    *,
    mesh: Mapping[str, int],
    remat: str | None,
    per_chip: int,
    accumulate: int,
) -> list[str]:
    """What may make a training step fit, by arithmetic: of each kind the least that does by itself, if any.

    state, rest: bytes of a chip. mesh: the sizes of its axes. remat: of the network, None where it knows none.
    per_chip: samples of the batch, in `accumulate` parts.
    """
    found = _wider(state, rest, available, mesh, "parameters, averages and optimiser")
    if remat in ("none", "matmuls") and state < available:
        found.append(f"model.remat={'matmuls or ' if remat == 'none' else ''}blocks: more is computed again")
    for times in POWERS:
        if per_chip % (accumulate * times) == 0 and state + rest / times <= available:
            found.append(f"training.accumulate={accumulate * times}: as many parts of the batch, one after another")
            break
    return found or [f"more chips, and mesh.fsdp over them: the state takes {state / GIB:.1f} GiB of each chip"]


def sampling_remedies(
    params: float, rest: float, available: float, *, mesh: Mapping[str, int], batch: int
) -> list[str]:
    """What may make a sampler fit, as `remedies`. params, rest: bytes of a chip. batch: samples on all of them."""
    found = []
    shards = math.prod(mesh[axis] for axis in BATCH_AXES)
    for times in POWERS:
        fewer = batch // times // shards * shards
        if fewer and params + rest * fewer / batch <= available:
            found.append(f"sampling.batch_size={fewer}: fewer samples at once")
            break
    found += _wider(params, rest, available, mesh, "parameters")
    return found or [f"more chips, and mesh.fsdp over them: the parameters take {params / GIB:.1f} GiB of each chip"]


def _wider(split: float, rest: float, available: float, mesh: Mapping[str, int], what: str) -> list[str]:
    """The least `mesh.fsdp` over which `split` bytes of each chip fit beside `rest`, at the cost of `mesh.data`."""
    for times in POWERS:
        if mesh["data"] % times == 0 and split / times + rest <= available:
            data, fsdp = mesh["data"] // times, mesh["fsdp"] * times
            return [f"mesh.data={data} mesh.fsdp={fsdp}: {what} over as many chips"]
    return []
