"""Errors of the machine that end a run with one line."""

import errno
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from score_sde.errors import RunFailed, room_for
from score_sde.writers import MetricWriter, write_arrays, write_json
from tests import program

FULL_DISK = "/dev/full"  # each write to it fails as one to a full disk does


@pytest.mark.parametrize(
    "write", [lambda path: write_arrays(path, {"x": np.zeros(100_000)}), lambda path: write_json(path, {"x": 1})]
)
def test_a_file_on_a_full_disk_is_one_line(write, tmp_path):
    """And nothing of it is left, nor is the file of that name lost."""
    path = tmp_path / "a.out"
    path.write_text("before")
    for name in (".a.partial.out", ".a.partial.out.npz"):  # numpy's has its own ending
        (tmp_path / name).symlink_to(FULL_DISK)
    with pytest.raises(RunFailed, match=r"a\.out cannot be written: No space left on device \([0-9.]+ MiB are left"):
        write(path)
    assert path.read_text() == "before"


def test_the_log_on_a_full_disk_is_one_line(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer._lines.close()
    writer._lines = open(FULL_DISK, "a")  # noqa: SIM115
    with pytest.raises(RunFailed, match=r"metrics\.jsonl cannot be written: No space left on device"):
        writer.scalars(1, {"loss": 1.0})
    with pytest.raises(RunFailed, match="No space left"):
        writer.close()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ValueError("RESOURCE_EXHAUSTED: … Failed to write 500 bytes: No space left on device [os_error_code='28']"),
    ],
    ids=["quota", "tensorstore"],
)
def test_a_full_disk_has_more_than_one_form(error, tmp_path):
    with pytest.raises(RunFailed, match="cannot be written"), room_for(tmp_path / "a"):
        raise error


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (OSError(errno.EIO, "Input/output error"), ValueError("RESOURCE_EXHAUSTED: Out of memory")):
        with pytest.raises(type(error)) as found, room_for(tmp_path / "a"):
            raise error
        assert found.value is error


# In a namespace of its own, where anyone may mount: a small disk that fills up, and is then made larger.
SMALL_DISK = """
mount -t tmpfs -o size=2m small "$1" || exit 99
shift
"$@"; first=$?
left=$(ls "$RUN/checkpoints" | tr '\\n' ' ')
mount -o remount,size=200m small "$(dirname "$RUN")"
"$@"; second=$?
echo "ends: $first $second, left: $left, in the end: $(ls "$RUN/checkpoints" | tr '\\n' ' ')"
"""


def test_a_disk_that_fills_up_ends_the_training_with_one_line_and_it_goes_on(tmp_path):
    allowed = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*allowed, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    settings = (*program.TINY, "--config.training.save_every=2 steps", "--config.training.keep_checkpoints=100")
    duration = "--config.training.duration=40 steps"
    command = program.flags(tmp_path / "run", "train", *settings, duration)
    shell = ["sh", "-c", SMALL_DISK, "sh", str(tmp_path), sys.executable, str(program.ROOT / "main.py"), *command]
    environment = program.environment(RUN=str(tmp_path / "run"))
    found = subprocess.run([*allowed, *shell], check=False, capture_output=True, text=True, env=environment)
    *_, ends = found.stdout.splitlines()
    statuses, left, last = re.fullmatch(r"ends: (.*), left: (.*), in the end: (.*)", ends).groups()
    assert statuses == "1 0", found.stderr
    [error] = found.stderr.splitlines()
    assert re.search(
        r"run/(checkpoints|metrics\.jsonl) cannot be written: No space left on device \([01]\.\d MiB are left", error
    )
    whole = [int(name) for name in left.split() if name.isdecimal()]
    assert 0 < max(whole) < 40
    assert f"going on from step {max(whole)} of 40" in found.stdout
    assert sorted(map(int, last.split())) == list(range(2, 41, 2))  # and nothing of what was cut short
