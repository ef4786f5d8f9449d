"""Checkpoints: the only place that imports orbax.

A checkpoint holds the training state, its moving average apart (so that sampling reads no optimiser state), and
the data iterator's state with a checksum of each. Saves are asynchronous and appear under their step's name only
when complete, so one cut short is never picked up. Restoring verifies the checksums, names a damaged checkpoint
and goes back to the one before it. Restored arrays take the sharding of the target, whatever wrote them.
"""

import dataclasses
import errno
import functools
import json
import logging
import math
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from score_sde.distributed.processes import of_all, wait_for_all
from score_sde.errors import RunFailed, UserError, room_for
from score_sde.typing import Params

logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of readers that ended at a damaged file
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports each step of its work there


class State(Protocol):
    """What is saved: a frozen dataclass of pytrees, among them the step and the averaged parameters."""

    @property
    def step(self) -> Any: ...

    @property
    def ema(self) -> Params: ...


S = TypeVar("S", bound=State)


class Damaged(Exception):
    """A checkpoint whose content is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored(Generic[S]):
    """A training state, and the state of the data iterator that belongs to it."""

    state: S
    data: Any


class Averaged(NamedTuple):
    """The averaged parameters of a checkpoint. checksum: as it was saved with them."""

    step: int
    params: Params
    checksum: int


class Checkpoints:
    """The checkpoints under one directory.

    keep: how many of the newest, None for all; every: those at its multiples of steps too, 0 for none. warn: called
    with one line for each damaged one passed over.
    """

    def __init__(
        self, directory: Path, *, keep: int | None, every: int = 0, read_only: bool, warn: Callable[[str], None]
    ) -> None:
        self._directory, self._read_only, self._warn, self._keep, self._every = directory, read_only, warn, keep, every
        _silence_readers_that_gave_up()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if self._read_only else self._keep,
            keep_period=None if self._read_only else self._every or None,
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
        )
        # Without its handler, orbax gives no metadata of an item that it has neither saved nor restored.
        handlers = {
            "train": ocp.StandardCheckpointHandler(),
            "ema": ocp.StandardCheckpointHandler(),
            "rest": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self._directory.absolute(), options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, data: Any) -> None:
        """Starts saving; returns when the state may be donated. Raises RunFailed where the disk is full, as do the next
        save, `wait` and `close`."""
        train, average = _split(state)
        checksums = {"train": _checksum(train), "ema": _checksum(average), "data": _text_checksum(data)}
        rest = {"data": data, "checksum": checksums}
        items = ocp.args.Composite(
            train=ocp.args.StandardSave(train), ema=ocp.args.StandardSave(average), rest=ocp.args.JsonSave(rest)
        )
        with room_for(self._directory):
            self._manager.save(int(state.step), args=items)

    def wait(self) -> None:
        """Returns when the last save is complete."""
        with room_for(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the directory."""
        with room_for(self._directory):
            self._manager.close()

    def restore(self, target: S) -> Restored[S] | None:
        """The newest sound checkpoint, or None if there is none at all.

        target: shapes, dtypes and shardings. A damaged newer one is moved to `damaged/`, so that its step can be
        saved again. Raises UserError where the target is of another structure, or all are damaged.
        """
        damaged: list[int] = []
        train_target, ema_target = _split(target)
        self._check({"train": train_target, "ema": ema_target})
        for _, (train, average, rest) in self._sound({"train": train_target, "ema": ema_target}, damaged):
            if damaged and not self._read_only:
                self._set_aside(damaged)
            return Restored(dataclasses.replace(target, **train, ema=average), rest["data"])  # type: ignore[type-var]
        return None

    def restore_ema(self, target: Params) -> Averaged:
        """Of the newest sound checkpoint. Raises UserError where there is none."""
        for step, (average, rest) in self._sound({"ema": target}, []):
            return Averaged(step, average, rest["checksum"]["ema"])
        raise UserError(f"no checkpoint in {self._directory}; run with --mode=train first")

    def restore_ema_at(self, step: int, target: Params) -> Averaged:
        """Of one step. Raises UserError where it is damaged."""
        try:
            average, rest = self._load(step, {"ema": target})
            return Averaged(step, average, rest["checksum"]["ema"])
        except Damaged as error:
            raise UserError(
                f"{self._directory / str(step)} is damaged ({error}); move it away to do without"
            ) from error

    def clear(self) -> None:
        """Removes all."""
        for step in self.steps():
            self._manager.delete(step)

    def check(self, target: State) -> None:
        """Raises UserError unless the newest checkpoint's averages are those of `target`; reads shapes only."""
        self._check({"ema": target.ema})

    def _check(self, targets: dict[str, Any]) -> None:
        """Raises UserError unless the items of the newest checkpoint are of the targets' structure and shapes."""
        for step in reversed(self.steps()):
            try:
                saved = {name: self._manager.item_metadata(step)[name] for name in targets}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged: dealt with where it is restored
            if any(item is None for item in saved.values()):
                continue
            found = _shapes({name: item.tree for name, item in saved.items()})
            wanted = _shapes(targets)
            if found == wanted:
                return
            name = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))[0]
            raise UserError(
                f"checkpoint {self._directory / str(step)} does not fit the config: {name} is "
                f"{found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} by the config; "
                "use the config it was trained with, or another --workdir"
            )

    def _sound(self, targets: dict[str, Any], damaged: list[int]) -> Iterator[tuple[int, list[Any]]]:
        """(step, items in the order of `targets` and then `rest`), newest first; damaged steps are appended."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                found = self._load(step, targets)
            except Damaged as error:
                damaged.append(step)
                self._warn(f"checkpoint {self._directory / str(step)} is damaged ({error}); trying the one before it")
                continue
            yield step, found
        if steps:
            raise UserError(
                f"every checkpoint in {self._directory} is damaged: {', '.join(map(str, steps))}; "
                "restore one from a copy, or train again in another --workdir"
            )

    def _load(self, step: int, targets: dict[str, Any]) -> list[Any]:
        arguments = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments, rest=ocp.args.JsonRestore()))
            rest = restored["rest"]
            expected = {name: rest["checksum"][name] for name in targets}
            intact = _text_checksum(rest["data"]) == rest["checksum"]["data"]
        except MemoryError as error:
            raise RunFailed(f"checkpoint {self._directory / str(step)} does not fit into memory") from error
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            if _passing(error):  # the file may be sound: nothing is set aside
                raise RunFailed(f"checkpoint {self._directory / str(step)} cannot be read now: {error}") from error
            raise Damaged(_reason(error)) from error
        if not intact:
            raise Damaged("the checksum of 'data' does not match")
        for name in targets:
            if _checksum(restored[name]) != expected[name]:
                raise Damaged(f"the checksum of {name!r} does not match")
        return [*(restored[name] for name in targets), rest]

    def _set_aside(self, steps: list[int]) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            aside = self._directory / "damaged"
            aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(aside / str(step), ignore_errors=True)
                (self._directory / str(step)).rename(aside / str(step))
        wait_for_all("damaged checkpoints")
        self._manager = self._open()


def _split(state: Any) -> tuple[dict[str, Any], Params]:
    train = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "ema"}
    return train, state.ema


@jax.jit
def _part_checksum(part: jax.Array, start: jax.Array, stride: jax.Array) -> jax.Array:
    """Σ bits_i (2i + 1) mod 2³² over a part of an array, i the place of each value in the whole, row by row.

    Any one changed word changes the sum of all parts, whichever they are. start: the part's first place on each axis;
    stride: how far apart neighbours on it are.
    """
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[part.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(part, width).astype(jnp.uint32)
    place = jnp.zeros(part.shape, jnp.uint32)
    for axis in range(part.ndim):
        place += (start[axis] + jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis)) * stride[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _checksum(tree: Any) -> int:
    """One number for all the arrays of a tree, computed where they are, and the same however they are laid out.

    Each process sums the parts that it holds the first copy of, so that nothing travels but one number of each.
    """
    parts: list[tuple[int, jax.Array]] = []
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        stride = [math.prod(leaf.shape[axis + 1 :]) % 2**32 for axis in range(leaf.ndim)]
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                start = [index.start or 0 for index in shard.index]
                where = np.asarray(start, np.uint32), np.asarray(stride, np.uint32)
                parts.append((number, _part_checksum(shard.data, *where)))
    sums = jax.device_get([part for _, part in parts])
    own = sum((2 * number + 1) * int(value) for (number, _), value in zip(parts, sums, strict=True)) % 2**32
    return int(np.sum(of_all(np.uint32(own)), dtype=np.uint64)) % 2**32


@functools.cache
def _silence_readers_that_gave_up() -> None:
    """At the first damaged file orbax's reader ends; tensorstore goes on answering it from threads of its own, for
    every array, and Python would print a traceback for each answer that finds nobody."""
    print_others = sys.unraisablehook
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine that was never finished
        of_reader = code is not None and "orbax" in code.co_filename
        if not of_reader and str(unraisable.exc_value) != "Event loop is closed":
            print_others(unraisable)

    sys.unraisablehook = hook


def _text_checksum(value: Any) -> int:
    """The same of plain data."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _passing(error: Exception) -> bool:
    """Whether an error is the machine's rather than the file's: a disk or network that fails, or too little memory."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def _reason(error: BaseException) -> str:
    """The innermost error in one line. Of tensorstore's "kind: where: … : what [details]" the kind and the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next(iter(str(error).strip().splitlines()), repr(error))
    parts = re.split(r" \[[\w ]+(?:\[\d+\])?='", line)[0].split(": ")
    return ": ".join(parts if len(parts) < 3 else [parts[0], *parts[-2:]])


def _shapes(items: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its name."""
    return {_name(path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(items)}


def _name(path: Any) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
