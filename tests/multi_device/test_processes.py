"""Jobs of two and four processes: the same training as one, whatever the mesh, and what happens when one dies."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests import program
from tests.multi_device import jobs

SETTINGS = (
    *program.TINY,
    "--config.model.channels=32",  # so that some parameters are large enough to be split
    "--config.training.duration=20 steps",
    "--config.training.log_every=1 steps",
)
MESHES = {
    "data": ("--config.mesh.data=4",),
    "fsdp": ("--config.mesh.data=1", "--config.mesh.fsdp=4"),
    "mixed": ("--config.mesh.data=-1", "--config.mesh.fsdp=2"),
    "slices": ("--config.mesh.slices=2", "--config.mesh.fsdp=2"),
}
CLASSIFIER = (
    "--config.classifier.name=wide_resnet",
    "--config.classifier.blocks_per_group=1",
    "--config.classifier.channel_multiplier=1",
    "--config.classifier.batch_size=16",
    "--config.classifier.duration=4 steps",
)
# Takes a checkpoint to another topology: restores it, writes what it holds, and saves it in another workdir.
CARRY = """
import sys
from score_sde.distributed import environment
environment.prepare()
from pathlib import Path
import jax, numpy as np
from score_sde.distributed import processes
processes.start("auto")
from score_sde.distributed.mesh import fetch
from tests import program
source, target, digest, mesh = sys.argv[1:]
make = lambda path: program.experiment(Path(path), *program.TINY, "--config.model.channels=32", *mesh.split())
old, new = make(source), make(target)
reader = old.open_checkpoints(read_only=True)
restored = reader.restore(old.abstract_state())
reader.close()
split = [leaf for leaf in jax.tree.leaves(restored.state.params) if not leaf.is_fully_replicated]
assert bool(split) == (old.mesh.shape["fsdp"] > 1)
values = fetch(jax.tree.leaves(restored.state))
if jax.process_index() == 0:
    np.savez(digest, *values)
new.workdir.create(new.config)
writer = new.open_checkpoints(read_only=False)
writer.save(restored.state, restored.data)
writer.close()
"""
ROWS = """
import sys
from score_sde.distributed import processes
processes.start("on")
import jax, numpy as np
from score_sde.data import InMemory, InWorkers, iterate
from score_sde.distributed.mesh import MeshSettings, own_rows, put_batch, fetch
mesh = MeshSettings(data=-1, fsdp=2).build()
records, workers = InMemory({"image": np.arange(50)}), int(sys.argv[2])
records = InWorkers(records, workers) if workers else records
batches = iterate(records, 8, 3, own_rows(mesh, 8), at_once=workers)
mine, whole = [], []
for _ in range(25):
    batch = next(batches)["image"]
    mine.append(batch)
    whole.append(fetch(put_batch(mesh, {"image": batch}, 8))["image"])
np.savez(f"{sys.argv[1]}/{jax.process_index()}.npz", mine=np.stack(mine), whole=np.stack(whole))
"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """one: trained by one process; the names of `MESHES`: by two processes of two devices."""

    def make(path: Path) -> None:
        path.mkdir()
        assert program.main(program.flags(path / "one", "train", *SETTINGS)) == 0
        assert program.main(program.flags(path / "one", "train_classifier", *SETTINGS, *CLASSIFIER)) == 0
        traced = "--config.profile.steps=15,16"
        on_two = [program.flags(path / name, "train", *SETTINGS, *mesh, traced) for name, mesh in MESHES.items()]
        sampling = program.flags(path / "fsdp", "sample", *SETTINGS, *MESHES["fsdp"], "--config.sampling.samplers=ddim")
        classifier = program.flags(path / "fsdp", "train_classifier", *SETTINGS, *MESHES["fsdp"], *CLASSIFIER)
        jobs.run(path / "logs", 2, 2, [*on_two, sampling, classifier])

    return program.shared(tmp_path_factory, "processes", make)


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_train_as_one(mesh, runs):
    one, two = losses(runs / "one"), losses(runs / mesh)
    assert list(one) == list(two) == list(range(1, 21))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=0, atol=1e-5)


def test_two_processes_train_the_classifier_as_one(runs):
    """With its own parameters split over fsdp, as the table of them shows."""
    one, two = losses(runs / "one" / "classifier"), losses(runs / "fsdp" / "classifier")
    assert list(one) == list(two) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=0, atol=1e-5)
    table = (runs / "logs" / "process_0.log").read_text().rpartition("Bytes_a_device")[2]
    assert "fsdp" in table


def test_each_process_writes_only_what_is_its_own(runs):
    """Process 0 alone speaks and writes metrics, or each step would stand there twice."""
    said = (runs / "logs" / "process_1.log").read_text()
    assert "loss" not in said
    assert "2 processes: 0 on " in (runs / "logs" / "process_0.log").read_text()
    assert (runs / "fsdp" / "samples" / "ddim.npz").exists()


def test_each_process_traces_its_own_devices(runs):
    for number in (0, 1):
        folder = runs / "data" / "profile" / f"process_{number}"
        assert len(list(folder.rglob("*.xplane.pb"))) == len(list(folder.rglob("perfetto_trace.json.gz"))) == 1


def test_checkpoint_restores_on_any_topology(runs, tmp_path):
    """One process, eight devices, two processes, four processes, one process: the same bits everywhere."""
    mixed, whole = "--config.mesh.fsdp=2", ""
    stages = [(1, 8, mixed), (2, 2, mixed), (4, 1, mixed), (1, 1, whole)]
    source, found = runs / "one", []
    for number, (processes, devices, mesh) in enumerate(stages):
        target, digest = tmp_path / f"stage_{number}", tmp_path / f"stage_{number}.npz"
        arguments = [CARRY, str(source), str(target), str(digest), mesh]
        with jobs.started(tmp_path / "logs", processes, devices, arguments) as job:
            assert job.wait(300) == [0] * processes, job.text()
        found.append(list(np.load(digest).values()))
        source = target
    for leaves in found[1:]:
        assert len(leaves) == len(found[0]) > 50
        for one, two in zip(found[0], leaves, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_records_of_each_epoch(workers, tmp_path):
    """Four processes, of which pairs of mesh rows may hold anything: each record once an epoch, none twice."""
    with jobs.started(tmp_path, 4, 1, [ROWS, str(tmp_path), str(workers)]) as job:
        assert job.wait(300) == [0] * 4, job.text()
    parts = [np.load(tmp_path / f"{number}.npz") for number in range(4)]
    whole = parts[0]["whole"]
    order = whole.reshape(-1)
    for epoch in range(4):  # 50 records in batches of 8: batches span epochs
        assert sorted(order[50 * epoch : 50 * (epoch + 1)]) == list(range(50))
    for part in parts:
        np.testing.assert_array_equal(part["whole"], whole)
        assert part["mine"].shape == (25, 2)
    np.testing.assert_array_equal(np.sort(np.concatenate([part["mine"] for part in parts], axis=1)), np.sort(whole))


LONG = (
    *SETTINGS,
    "--config.mesh.fsdp=2",
    "--config.training.save_every=5 steps",
)


def train_flags(workdir: Path, *overrides: str) -> list[str]:
    return program.flags(workdir, "train", *LONG, *overrides)


def saved(workdir: Path) -> list[int]:
    return sorted(int(each.name) for each in (workdir / "checkpoints").glob("[0-9]*") if each.name.isdecimal())


def logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(("victim", "when"), [(1, "step"), (1, "save"), (0, "step")])
def test_killed_process_ends_the_job_and_it_goes_on(victim, when, runs, tmp_path):
    """SIGKILL of one of two: the other ends by itself and names the dead; started again, the end is the same."""
    workdir = tmp_path / "run"
    arguments = [jobs.SCRIPT, json.dumps([train_flags(workdir)])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        if when == "save":
            job.wait_for(lambda: any((workdir / "checkpoints").glob("5.*tmp*")) or 5 in saved(workdir))
        else:
            job.wait_for(lambda: logged(workdir) >= 7)
        job.processes[victim].send_signal(signal.SIGKILL)
        survivor = job.processes[1 - victim]
        assert survivor.wait(120) not in (0, 2, 75)
        said = job.logs[1 - victim].read_text()
    if victim == 1:
        assert "process 1 does not answer any more" in said or "Task 1 heartbeat" in said or "heartbeats):\n1" in said
    else:
        assert "leader" in said or "process 0 does not answer" in said
    assert all(step % 5 == 0 for step in saved(workdir))
    if victim == 0:
        return  # what is on disk is of the same kind
    jobs.run(tmp_path / "again", 2, 1, [train_flags(workdir)])
    undisturbed, after = losses(runs / "one"), losses(workdir)
    assert list(after) == list(range(1, 21))
    np.testing.assert_allclose(list(after.values()), list(undisturbed.values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_one_process_stops_all_at_the_same_step(number, runs, tmp_path):
    workdir = tmp_path / "run"
    arguments = [jobs.SCRIPT, json.dumps([train_flags(workdir, "--config.training.save_every=1000 steps")])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        job.wait_for(lambda: logged(workdir) >= 3)
        job.processes[1].send_signal(number)
        assert job.wait(120) == [75, 75], job.text()
        said = job.logs[0].read_text()
    [step] = saved(workdir)
    assert 3 <= step < 20
    assert f"step {step} is saved" in said
    if number == signal.SIGTERM:
        jobs.run(tmp_path / "again", 2, 1, [train_flags(workdir)])
        np.testing.assert_allclose(
            list(losses(workdir).values()), list(losses(runs / "one").values()), rtol=0, atol=1e-5
        )


def test_signal_to_a_job_of_one_process(tmp_path):
    """As on a TPU of one host: JAX's runtime listens for SIGTERM in our place."""
    workdir = tmp_path / "run"
    flags = train_flags(workdir, "--config.mesh.fsdp=1", "--config.training.duration=900 steps")
    with jobs.started(tmp_path / "logs", 1, 1, [jobs.SCRIPT, json.dumps([flags])]) as job:
        job.wait_for(lambda: logged(workdir) >= 3)
        job.processes[0].send_signal(signal.SIGTERM)
        assert job.wait(120) == [75], job.text()
