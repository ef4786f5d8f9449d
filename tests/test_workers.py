"""Workers of the pipeline: the same batches for any number of them, and that none is left behind."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import InWorkers, iterate
from score_sde.data.array_record import ArrayRecord
from score_sde.data.folder import Folder
from score_sde.data.preparation import Preparation, Settings
from score_sde.data.workers import WorkerFailed, Workers
from score_sde.errors import RunFailed
from tests import program
from tests.slow_records import Deadly, Slow

BATCH, SEED = 8, 3


@contextlib.contextmanager
def batches(records, count, rows=slice(None), fields=None):
    """An iterator of a number of workers, 0 for none."""
    if count == 0:
        yield iterate(records, BATCH, SEED, rows, fields)
        return
    with contextlib.closing(InWorkers(records, count)) as workers:
        yield iterate(workers, BATCH, SEED, rows, fields, at_once=count)


def take(iterator, count, field="label"):
    return np.stack([batch[field] for batch in itertools.islice(iterator, count)])


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its status does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(numbers, seconds=20.0):
    end = time.monotonic() + seconds
    while any(map(alive, numbers)):
        assert time.monotonic() < end, [number for number in numbers if alive(number)]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed():
    return take(iterate(Slow(), BATCH, SEED), 60)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("at", [0, 5, 33])
def test_batches_are_those_of_no_workers_also_after_a_restore(count, at, undisturbed):
    """53 records in batches of 8: some batches span two epochs."""
    with batches(Slow(seconds=0.002), count) as first:
        np.testing.assert_array_equal(take(first, at + 10), undisturbed[: at + 10])
    with batches(Slow(seconds=0.002), 0) as alone:
        list(itertools.islice(alone, at))
        state = json.loads(json.dumps(alone.get_state()))
    with batches(Slow(seconds=0.002), count) as second:
        list(itertools.islice(second, 3))  # what was made ahead is dropped
        second.set_state(state)
        np.testing.assert_array_equal(take(second, 20), undisturbed[at : at + 20])
        assert second.get_state() == {"next_index": at + 20}


def test_going_on_reads_nothing_again(undisturbed):
    """The state is the number of the next batch: going on at step 10 million costs what it costs at step 0."""
    with batches(Slow(), 1) as iterator:
        next(iterator)
        start = time.monotonic()
        iterator.set_state({"next_index": 10**7})
        next(iterator)
        assert time.monotonic() - start < 1


def test_each_process_of_a_job_reads_its_own_rows_alone(undisturbed):
    rows = [np.arange(4), np.arange(4, 8)]
    parts = []
    for own in rows:
        with batches(Slow(), 2, own) as iterator:
            parts.append(take(iterator, 20))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), undisturbed[:20])


def test_workers_read_at_once_only_what_is_asked_for_and_import_no_jax():
    with batches(Slow(seconds=0.05), 2, fields=("process", "jax")) as iterator:
        found = list(itertools.islice(iterator, 12))
    assert all(set(batch) == {"process", "jax"} for batch in found)
    numbers = {int(number) for batch in found for number in batch["process"]}
    assert len(numbers) == 2
    assert os.getpid() not in numbers
    assert not any(batch["jax"].any() for batch in found)
    wait_until_gone(numbers)


def test_workers_are_faster_where_records_are_slow():
    """Reading overlaps with the work on the batches that were read before."""
    spent = {}
    for count in (0, 2):
        with batches(Slow(seconds=0.05), count) as iterator:
            list(itertools.islice(iterator, 2 * count + 1))
            start = time.monotonic()
            for _ in itertools.islice(iterator, 12):
                time.sleep(0.05)
            spent[count] = time.monotonic() - start
    assert spent[0] > 12 * 0.1
    assert spent[2] < 0.8 * spent[0]


@pytest.mark.parametrize("count", [0, 2])
def test_a_damaged_record_is_named(count):
    with (
        batches(Slow(damaged=17), count) as iterator,
        pytest.raises(RunFailed, match=r"17: file 17\.png is cut short"),
    ):
        list(itertools.islice(iterator, 8))


def test_a_bug_comes_with_its_traceback():
    with (
        batches(Slow(foolish=17), 2) as iterator,
        pytest.raises(WorkerFailed, match=r"(?s)in a worker.*slow_records\.py.*ZeroDivisionError: a bug"),
    ):
        list(itertools.islice(iterator, 8))


def test_a_worker_that_is_killed():
    with batches(Deadly(), 2) as iterator, pytest.raises(RunFailed, match="ended unasked"):
        next(iterator)


def test_what_cannot_be_pickled_leaves_no_process():
    with pytest.raises(Exception, match=r"pickle|local object"):
        Workers(2, lambda argument: argument)


PROGRAM = """
import itertools, sys, time
from score_sde.data import InWorkers, iterate
from tests.slow_records import Slow
if __name__ == "__main__":
    records = InWorkers(Slow(seconds=0.02), 2)
    batches = iterate(records, 8, 0, at_once=2)
    found = {int(n) for batch in itertools.islice(batches, 10) for n in batch["process"]}
    print(*found, flush=True)
    if sys.argv[1] == "wait":
        for _ in batches:
            pass
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_workers_do_not_outlive_a_process_that_is_killed(script):
    environment = program.environment(PYTHONPATH=str(program.ROOT))
    with subprocess.Popen([sys.executable, str(script), "wait"], stdout=subprocess.PIPE, env=environment) as process:
        numbers = [int(word) for word in process.stdout.readline().split()]
        assert len(numbers) == 2
        assert all(map(alive, numbers))
        process.kill()
    wait_until_gone(numbers, 5)


def test_a_program_that_does_not_close_them_ends_in_silence(script):
    environment = program.environment(PYTHONPATH=str(program.ROOT))
    command = [sys.executable, str(script), "end"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until_gone([int(word) for word in done.stdout.split()], 5)


def children(number: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_training_as_one_to_the_process(number, tmp_path):
    """As Ctrl-C in a terminal and most schedulers send it."""
    settings = ("--config.training.workers=2", "--config.training.duration=1000 steps")
    flags = program.flags(tmp_path / "run", "train", *program.TINY, *settings)
    command = [sys.executable, str(program.ROOT / "main.py"), *flags]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        metrics = tmp_path / "run" / "metrics.jsonl"
        end = time.monotonic() + 240
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        numbers = children(process.pid)
        assert len(numbers) >= 2
        os.killpg(process.pid, number)
        status = process.wait(60)
    said = (tmp_path / "log").read_text()
    assert status == 75, said
    assert "is saved" in said
    assert "Traceback" not in said
    wait_until_gone(numbers, 5)
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) == 1


@pytest.fixture
def images(tmp_path):
    """Twenty pictures in a folder, a zip of them, and both as they are prepared."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number in range(20):
            path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
            archive.write(path, path.relative_to(tmp_path / "images"))
    list(Preparation(Settings(source=tmp_path / "images", output=tmp_path / "prepared", resolution=5)).run())
    return tmp_path


@pytest.mark.parametrize(
    "source",
    [
        lambda path: Folder(path=str(path / "images"), size=4, classes=2),
        lambda path: Folder(path=str(path / "images.zip"), size=4, classes=2),
        lambda path: ArrayRecord(pattern=str(path / "prepared"), size=4, classes=2),
    ],
    ids=["folder", "zip", "array_record"],
)
def test_sources_that_read_on_demand(source, images, monkeypatch):
    monkeypatch.setattr("score_sde.data.on_demand.HELD", 0)  # as if they were large
    records = source(images).split("train")
    found = {}
    for count in (0, 1, 4):
        with batches(records, count) as iterator:
            found[count] = [(batch["image"], batch["label"]) for batch in itertools.islice(iterator, 8)]
    for count in (1, 4):
        for one, other in zip(found[0], found[count], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])


def test_a_record_that_was_damaged_since(images, monkeypatch):
    monkeypatch.setattr("score_sde.data.on_demand.HELD", 0)
    shard = sorted((images / "prepared").glob("*.array_record"))[3]
    records = ArrayRecord(pattern=str(images / "prepared"), size=4, classes=2).split("train")
    content = bytearray(shard.read_bytes())
    place = content.index(b"IDAT") + 20
    content[place] ^= 1
    shard.write_bytes(content)
    with batches(records, 2) as iterator, pytest.raises(RunFailed, match=r"data: record \d+ of .*prepared.*damaged"):
        list(itertools.islice(iterator, 20))
