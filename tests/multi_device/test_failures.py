"""Jobs of two processes of which one is told to stop too early, is given something else, or fails: how all end."""

import json
import platform
import time
from pathlib import Path

import pytest

from tests import program
from tests.multi_device import jobs

SETTINGS = (*program.TINY, "--config.training.duration=20 steps", "--config.training.log_every=1 steps")

# SIGTERM as it comes when modules are imported, or hosts wait for each other.
EARLY = """
import os, signal
start = processes.start
def after_a_signal(distributed):
    if os.environ["JAX_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    start(distributed)
processes.start = after_a_signal
"""
# An error after some steps, of the processes BREAKS.
BROKEN = """
import os
from score_sde.errors import RunFailed
from score_sde.writers import Progress
advance = Progress.advance
def failing(self, count=1):
    advance(self, count)
    if os.environ["JAX_PROCESS_ID"] in os.environ["BREAKS"] and self._done == 3:
        raise {error}
Progress.advance = failing
"""
# A host that cannot write where the other can.
UNWRITABLE = """
import os
if os.environ["JAX_PROCESS_ID"] == "1":
    os.access = lambda *_: False
"""


def script(own: str) -> str:
    """That of `jobs`, with lines of `own` before main.py begins."""
    return jobs.SCRIPT.replace("import main\n", f"import main\n{own}")


def train_flags(workdir: Path, *overrides: str) -> list[str]:
    return program.flags(workdir, "train", *SETTINGS, *overrides)


def test_a_signal_before_the_processes_have_met_stops_all(tmp_path):
    arguments = [script(EARLY), json.dumps([train_flags(tmp_path / "run")])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        assert job.wait(200) == [75, 75], job.text()
    assert not (tmp_path / "run" / "checkpoints" / "20").exists()


@pytest.mark.parametrize(
    ("broken", "error", "line"),
    [
        (0, "KeyError('only here')", "error: process 0 failed: 'only here'\n"),
        (1, "OSError(28, 'No space left on device', '/a')", "error: /a: No space left on device\n"),
    ],
    ids=["unexpected", "failed work"],
)
def test_one_that_fails_alone_ends_and_so_do_the_others(broken, error, line, tmp_path, monkeypatch):
    """Both are alive and send heartbeats, one in a collective that the other does not come to."""
    monkeypatch.setenv("BREAKS", str(broken))
    arguments = [script(BROKEN.format(error=error)), json.dumps([train_flags(tmp_path / "run")])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        job.wait_for(lambda: line in job.logs[broken].read_text())
        start = time.monotonic()
        assert job.processes[broken].wait(30) == 1, job.text()  # 10 + 5 are stated
        assert 10 < time.monotonic() - start < 20
        assert job.processes[1 - broken].wait(60) not in (0, 2, 75), job.text()
        said, others = job.logs[broken].read_text(), job.logs[1 - broken].read_text()
    assert f"others are still at work, and end when process {broken} is missed" in said
    assert "leader" in others or f"process {broken} does not answer" in others or f"Task {broken} heartbeat" in others


def test_work_that_fails_on_all_ends_at_once(tmp_path, monkeypatch):
    """As where training diverges."""
    monkeypatch.setenv("BREAKS", "0 1")
    arguments = [script(BROKEN.format(error="RunFailed('diverged')")), json.dumps([train_flags(tmp_path / "run")])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        job.wait_for(lambda: any("error: " in log.read_text() for log in job.logs))
        start = time.monotonic()
        assert job.wait(60) == [1, 1], job.text()
        assert time.monotonic() - start < 8
        for log in job.logs:
            assert [line for line in log.read_text().splitlines() if "error" in line] == ["error: diverged"]


def test_bad_input_of_one_is_said_by_all(tmp_path):
    """Each of these ends both with 2 at once, with nothing written, and both logs say whose input is bad."""
    workdir = tmp_path / "run"
    good = train_flags(workdir, "--config.seed=1")
    second = {
        "optimiser.learning_rat": train_flags(workdir, "--config.optimiser.learning_rat=1e-3"),
        "there is no file": program.flags(workdir, "train", *SETTINGS, config=tmp_path / "absent.py"),
        "another config": train_flags(workdir, "--config.seed=2"),
        "cannot be written": good,
    }
    each = script(UNWRITABLE).replace("    if status:\n        sys.exit(status)\n", "    assert status == 2\n")
    each = each.replace("json.loads(sys.argv[1])", "json.loads(sys.argv[1 + int(os.environ['JAX_PROCESS_ID'])])")
    arguments = [each, json.dumps([good] * len(second)), json.dumps(list(second.values()))]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        assert job.wait(120) == [0, 0], job.text()
        logs = [log.read_text() for log in job.logs]
    said = [[line for line in log.splitlines() if line.startswith("error: ")] for log in logs]
    assert len(said[0]) == len(said[1]) == len(second)
    for name, first, other in zip(second, *said, strict=True):
        assert name in first
        if name == "another config":
            assert "error: process 1 of 2 runs another config than process 0" in first
            assert '(here "seed": 2, there "seed": 1)' in other
        else:
            assert first.startswith(f"error: process 1 of 2 ({platform.node()}): ")
            assert other == first
    assert not workdir.exists()


def test_bad_input_of_all_is_said_as_of_one(tmp_path):
    arguments = [jobs.SCRIPT, json.dumps([train_flags(tmp_path / "run", "--config.optimiser.learning_rat=1e-3")])]
    with jobs.started(tmp_path / "logs", 2, 1, arguments) as job:
        assert job.wait(120) == [2, 2], job.text()
        assert [log.read_text().count("error: config: unknown key optimiser") for log in job.logs] == [1, 1]
