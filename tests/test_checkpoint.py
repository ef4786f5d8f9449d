"""Checkpoints on disk: what is saved comes back, and nothing else ever does."""

import dataclasses
import errno
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde import checkpoint
from score_sde.checkpoint import Checkpoints
from score_sde.errors import RunFailed, UserError
from score_sde.training.ema import Exponential
from score_sde.training.state import TrainState

# Where a file is damaged, tensorstore leaves what it was reading unfinished.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def make_state(step: int, size: int = 3) -> TrainState:
    key = jax.random.fold_in(jax.random.key(0), step)
    draw = lambda number, *shape: jax.random.normal(jax.random.fold_in(key, number), shape)
    params = {"layer": {"kernel": draw(0, size, 4), "bias": draw(1, size)}, "scale": draw(2)}
    with jax.numpy_dtype_promotion("standard"):
        state = TrainState.create(
            params, optax.adam(1e-3), [Exponential(10.0), Exponential(20.0)], {"history": draw(3, 4)}
        )
    ema = tuple(jax.tree.map(lambda leaf, n=number: leaf + n, params) for number in (1, 2))
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32), ema=ema)


def target_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def content(tree) -> dict[str, bytes]:
    """Every leaf's bytes, by its path."""
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(tree)}


class Directory:
    """A checkpoint directory and the warnings given about it."""

    def __init__(self, path: Path) -> None:
        self.path, self.warnings = path, []

    def open(self, *, read_only: bool = False, keep: int = 10) -> Checkpoints:
        self.warnings.clear()
        return Checkpoints(self.path, keep=keep, read_only=read_only, warn=self.warnings.append)

    def restore(self, *, read_only: bool = True, target: TrainState | None = None):
        checkpoints = self.open(read_only=read_only)
        try:
            return checkpoints.restore(target_of(make_state(0)) if target is None else target)
        finally:
            checkpoints.close()

    def files(self, step: int) -> list[Path]:
        return sorted(path for path in (self.path / str(step)).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Steps 1, 2 and 3. Not to be changed."""
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Directory(path).open()
    for step in (1, 2, 3):
        checkpoints.save(make_state(step), {"next_index": 10 * step})
    checkpoints.close()
    return path


@pytest.fixture
def directory(saved, tmp_path) -> Directory:
    path = tmp_path / "checkpoints"
    shutil.copytree(saved, path)
    return Directory(path)


def is_step(found, step: int) -> bool:
    return content(found.state) == content(make_state(step)) and found.data == {"next_index": 10 * step}


@pytest.mark.parametrize("read_only", [True, False])
def test_newest_comes_back(read_only, directory):
    assert is_step(directory.restore(read_only=read_only), 3)
    assert directory.warnings == []
    assert jax.tree.structure(directory.restore().state) == jax.tree.structure(make_state(0))


def test_none_at_all(tmp_path):
    directory = Directory(tmp_path / "new")
    assert directory.restore(read_only=False) is None
    checkpoints = directory.open()
    assert checkpoints.steps() == []
    with pytest.raises(UserError, match="--mode=train first"):
        checkpoints.restore_ema(make_state(0).ema)
    checkpoints.close()


def test_oldest_are_removed(tmp_path):
    checkpoints = Directory(tmp_path / "new").open(keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(make_state(step), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
    checkpoints.close()


def test_reading_changes_nothing(directory):
    from tests.program import snapshot

    before = snapshot(directory.path)
    checkpoints = directory.open(read_only=True)
    checkpoints.check(target_of(make_state(0)))
    checkpoints.restore(target_of(make_state(0)))
    checkpoints.restore_ema(target_of(make_state(0)).ema)
    checkpoints.close()
    assert snapshot(directory.path) == before


def test_average_alone_is_the_states(directory):
    checkpoints = directory.open(read_only=True)
    step, average, _ = checkpoints.restore_ema(target_of(make_state(0)).ema)
    checkpoints.close()
    assert step == 3
    assert content(average) == content(make_state(3).ema)


def test_state_may_be_donated_while_it_is_saved(tmp_path):
    """save() is asynchronous; the next step writes over the buffers of the state at once."""
    params = {"w": jax.random.normal(jax.random.key(0), (3_000_000,))}
    template = make_state(0)
    state = TrainState(jnp.asarray(1, jnp.int32), params, ({"w": params["w"] * 2},), (), (), template.window)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 5, tree), donate_argnums=0)
    checkpoints = Directory(tmp_path / "new").open()
    for step in (1, 2):
        expected = content(jax.tree.map(jnp.copy, state))  # a view of the state itself would keep it from being donated
        checkpoints.save(state, {"next_index": step})
        state = overwrite(state)
        for _ in range(5):
            before, state = state, overwrite(state)
            assert before.params["w"].is_deleted()
        checkpoints.wait()
        found = checkpoints.restore(target_of(state))
        assert content(found.state) == expected
        key = jax.random.fold_in(jax.random.key(1), step)
        params = {"w": jax.random.normal(key, (3_000_000,))}
        state = TrainState(
            jnp.asarray(step + 1, jnp.int32), params, ({"w": params["w"] * 2},), (), (), make_state(0).window
        )
    checkpoints.close()


def test_save_cut_short_is_never_picked_up(directory):
    """What a killed save leaves: a directory under a temporary name, with any part of the files in it."""
    whole = directory.path / "3"
    for number, name in enumerate(("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1")):
        shutil.copytree(whole, directory.path / name)
        for file in (directory.path / name).rglob("*"):
            if file.is_file() and (number or file.name == "commit_success.txt"):
                file.unlink()
    for read_only in (True, False):
        assert is_step(directory.restore(read_only=read_only), 3)
        assert directory.warnings == []
    # The step can be saved when it comes, over what was left.
    checkpoints = directory.open()
    checkpoints.save(make_state(4), {"next_index": 40})
    checkpoints.close()
    assert is_step(directory.restore(), 4)


def test_empty_directory_under_a_steps_name(directory):
    """What a file system without atomic renaming may leave."""
    (directory.path / "4").mkdir()
    assert is_step(directory.restore(), 3)
    assert is_step(directory.restore(read_only=False), 3)
    checkpoints = directory.open()
    checkpoints.save(make_state(4), {"next_index": 40})
    checkpoints.close()
    assert is_step(directory.restore(), 4)


def damaged(directory: Directory, what: str) -> None:
    """The newest is passed over and named, or holds what was saved; never anything else."""
    found = directory.restore()
    if is_step(found, 3):
        return  # the file is not needed for reading
    assert is_step(found, 2), what
    assert len(directory.warnings) == 1, what
    assert str(directory.path / "3") in directory.warnings[0]
    assert "\n" not in directory.warnings[0]
    assert not re.search(r"tensorstore_spec|TensorStore|<", directory.warnings[0])


def arrays_of(directory: Directory, step: int) -> list[Path]:
    """The files that hold the numbers of the training state and of its average."""
    return [file for file in directory.files(step) if file.parent.name == "d" and file.parent.parent.name in ITEMS]


ITEMS = ("train", "ema")


@pytest.mark.parametrize("change", ["one byte", "truncated", "emptied", "deleted"])
def test_any_damaged_file(change, directory):
    changed = 0
    for file in directory.files(3):
        original = file.read_bytes()
        if change == "one byte" and original:
            # Some bytes of each file: the first, the last and a few between.
            places = sorted({int(share * (len(original) - 1)) for share in (0, 0.35, 0.7, 1)})
            for place in places:
                file.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
                damaged(directory, f"{file} byte {place}")
        elif change == "truncated":
            file.write_bytes(original[: len(original) // 2])
            damaged(directory, f"{file} truncated")
        elif change == "emptied":
            file.write_bytes(b"")
            damaged(directory, f"{file} emptied")
        elif change == "deleted":
            file.unlink()
            damaged(directory, f"{file} deleted")
        changed += bool(directory.warnings)
        file.write_bytes(original)
    assert changed >= 3  # the check has had something to find
    assert is_step(directory.restore(), 3)


def test_damaged_data_state(directory):
    """Still JSON, and of the right form: only a checksum can tell."""
    file = directory.path / "3" / "rest" / "metadata"
    text = file.read_text()
    assert '"next_index": 30' in text
    file.write_text(text.replace('"next_index": 30', '"next_index": 31'))
    assert is_step(directory.restore(), 2)
    assert "damaged" in directory.warnings[0]


def test_damaged_one_is_set_aside_and_its_step_saved_again(directory):
    for file in arrays_of(directory, 3):
        file.write_bytes(b"")
    checkpoints = directory.open()
    assert is_step(checkpoints.restore(target_of(make_state(0))), 2)
    assert str(directory.path / "3") in directory.warnings[0]
    assert (directory.path / "damaged" / "3").is_dir()
    assert not (directory.path / "3").exists()
    assert checkpoints.steps() == [1, 2]
    checkpoints.save(make_state(3), {"next_index": 30})
    checkpoints.close()
    assert is_step(directory.restore(), 3)
    assert directory.warnings == []


def test_damaged_twice(directory):
    for _ in range(2):
        for file in arrays_of(directory, 3):
            file.write_bytes(b"")
        checkpoints = directory.open()
        assert is_step(checkpoints.restore(target_of(make_state(0))), 2)
        checkpoints.save(make_state(3), {"next_index": 30})
        checkpoints.close()
    assert is_step(directory.restore(), 3)


def test_several_damaged(directory):
    for step in (2, 3):
        for file in arrays_of(directory, step):
            file.write_bytes(b"")
    assert is_step(directory.restore(), 1)
    assert len(directory.warnings) == 2
    checkpoints = directory.open(read_only=True)
    step, average, _ = checkpoints.restore_ema(target_of(make_state(0)).ema)
    checkpoints.close()
    assert step == 1
    assert content(average) == content(make_state(1).ema)


def test_all_damaged(directory):
    for step in (1, 2, 3):
        for file in arrays_of(directory, step):
            file.write_bytes(b"")
    for read_only in (True, False):
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: 1, 2, 3"):
            directory.restore(read_only=read_only)
    assert len(directory.warnings) == 3
    checkpoints = directory.open(read_only=True)
    with pytest.raises(UserError, match="damaged"):
        checkpoints.restore_ema(target_of(make_state(0)).ema)
    checkpoints.close()


def test_the_reason_is_the_innermost_error(tmp_path):
    """Where the values of a large array are cut short, orbax's own error is the repr of an object of its own."""
    state = dataclasses.replace(make_state(1), params={"w": jax.random.normal(jax.random.key(0), (1_000_000,))})
    directory = Directory(tmp_path / "new")
    checkpoints = directory.open()
    checkpoints.save(state, {})
    checkpoints.close()
    largest = max(directory.files(1), key=lambda path: path.stat().st_size)
    os.truncate(largest, 1000)
    with pytest.raises(UserError, match="every checkpoint"):
        directory.restore(target=target_of(state))
    expected = r"checkpoint .*1 is damaged \(OUT_OF_RANGE: Error reading .*: .* size 1000\); trying the one before it"
    assert re.fullmatch(expected, directory.warnings[0]), directory.warnings


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=["disk", "memory"])
def test_what_is_the_machines_fault_is_no_damage(error, directory, monkeypatch):
    """A failing disk, or too little memory: the run ends, no checkpoint is set aside, no older one is taken."""

    def fails(*_, **__):
        raise error

    checkpoints = directory.open(read_only=False)
    monkeypatch.setattr(checkpoints._manager, "restore", fails)
    with pytest.raises(RunFailed, match=r"cannot be read now|does not fit into memory"):
        checkpoints.restore(target_of(make_state(0)))
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


class TestCheck:
    def check(self, directory, target):
        checkpoints = directory.open(read_only=True)
        try:
            checkpoints.check(target)
        finally:
            checkpoints.close()

    def test_fits(self, directory):
        self.check(directory, target_of(make_state(0)))

    def test_other_shape(self, directory):
        with pytest.raises(UserError, match=r"layer\.bias is \(3,\) in the checkpoint and \(5,\) by the config"):
            self.check(directory, target_of(make_state(0, size=5)))

    def test_parameter_too_many(self, directory):
        state = make_state(0)
        ema = tuple({**average, "more": jnp.zeros(2)} for average in state.ema)
        with pytest.raises(UserError, match=r"more is absent in the checkpoint and \(2,\)"):
            self.check(directory, target_of(dataclasses.replace(state, ema=ema)))

    def test_average_too_many(self, directory):
        state = make_state(0)
        with pytest.raises(UserError, match=r"2\.layer\.bias is absent in the checkpoint and \(3,\)"):
            self.check(directory, target_of(dataclasses.replace(state, ema=(*state.ema, state.params))))

    def test_parameter_missing(self, directory):
        state = make_state(0)
        ema = tuple({"layer": average["layer"]} for average in state.ema)
        with pytest.raises(UserError, match=r"scale is \(\) in the checkpoint and absent"):
            self.check(directory, target_of(dataclasses.replace(state, ema=ema)))

    def test_damaged_files_do_not_disturb_it(self, directory):
        for file in directory.files(3):
            original = file.read_bytes()
            for content in (b"", original[: len(original) // 2], b"{" * len(original)):
                file.write_bytes(content)
                self.check(directory, target_of(make_state(0)))
            file.write_bytes(original)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32, jnp.uint8])
def test_checksum_sees_any_one_bit(dtype):
    width = jnp.dtype(dtype).itemsize
    draws = np.random.default_rng(0).integers(0, 256, 12 * width, np.uint8)
    flip = lambda place, bit: draws ^ (np.arange(len(draws)) == place).astype(np.uint8) * np.uint8(1 << bit)
    as_tree = lambda raw: {"a": jnp.arange(3), "b": jnp.asarray(raw.view(jnp.dtype(dtype)).reshape(3, 4))}
    original = checkpoint._checksum(as_tree(draws))
    assert checkpoint._checksum(as_tree(draws.copy())) == original
    for place in range(len(draws)):
        for bit in range(8):
            assert checkpoint._checksum(as_tree(flip(place, bit))) != original, (place, bit)


def test_checksum_sees_exchanged_values():
    values = jnp.arange(4.0)
    assert checkpoint._checksum([values]) != checkpoint._checksum([values[::-1]])
    assert checkpoint._checksum([values, values + 1]) != checkpoint._checksum([values + 1, values])
