"""Errors of the machine that end a run with one line."""

import errno
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from score_sde import experiment
from score_sde.errors import RunFailed, UserError, in_one_line, room_for
from score_sde.writers import MetricWriter, write_arrays, write_json
from tests import program
from tests.preparing import noise, png
from tests.preparing import write as write_files

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


def system_error(number, *paths):
    """What Python raises of it. paths: one, or of a renaming two."""
    return OSError(number, os.strerror(number), *map(str, [path for each in paths for path in (each, 0)][:-1]))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((number, RunFailed) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)),
        *((number, RunFailed) for number in (errno.EIO, errno.ESTALE)),
        *((number, UserError) for number in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_says_is_one_line(number, kind):
    for paths, named in [(["/a/b"], "/a/b: "), (["/a/\nb"], "/a/ b: "), (["/.a.partial", "/a"], "/a: "), ([], "")]:
        with pytest.raises(kind) as found, in_one_line():
            raise system_error(number, *paths)
        assert str(found.value) == named + os.strerror(number)


def test_a_long_path_is_shortened(tmp_path):
    path = tmp_path / ("x" * 300) / "end"
    with pytest.raises(UserError) as found, in_one_line():
        path.stat()
    assert str(found.value).startswith(str(tmp_path))
    assert str(found.value).endswith("x/end: File name too long")
    assert len(str(found.value)) < 230


def test_bugs_keep_their_traceback():
    for error in (OSError("by a library"), system_error(errno.ENOENT, "/a"), BrokenPipeError(), KeyError("a")):
        with pytest.raises(type(error)) as found, in_one_line():
            raise error
        assert found.value is error


@pytest.mark.parametrize(("number", "status"), [(errno.EROFS, 1), (errno.EISDIR, 2)], ids=["storage", "path"])
def test_main_says_it_in_one_line(number, status, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise system_error(number, "/a")

    monkeypatch.setattr(experiment, "run", fails)
    assert program.main(program.flags(tmp_path, "train", *program.TINY)) == status
    assert capsys.readouterr() == ("", f"error: /a: {os.strerror(number)}\n")


def test_main_lets_bugs_through(tmp_path, monkeypatch):
    def fails(*_):
        raise FileNotFoundError(errno.ENOENT, "gone", "/a")

    monkeypatch.setattr(experiment, "run", fails)
    with pytest.raises(FileNotFoundError):
        program.main(program.flags(tmp_path, "train", *program.TINY))


@pytest.fixture
def mounting():
    """The command that runs another in a namespace of its own, where anyone may mount."""
    allowed = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*allowed, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    return allowed


FEW_FILES = 'mount -t tmpfs -o nr_inodes="$1" small "$2" || exit 99; shift 2; "$@"'


def test_no_room_for_another_file_ends_the_preparation_with_one_line(mounting, tmp_path):
    """For the manifest, or for what comes before it."""
    source = write_files(tmp_path / "in", **{f"a/{number}.png": png(noise(number)) for number in range(3)})
    output = tmp_path / "out"
    output.mkdir()
    script = str(program.ROOT / "scripts" / "prepare_dataset")
    options = ("--resolution=4", "--shards=1", "--processes=1")
    command = [sys.executable, script, str(source), str(output / "set"), *options]
    for files, status in ((5, 1), (6, 0)):
        shell = ["sh", "-c", FEW_FILES, "sh", str(files), str(output), *command]
        found = subprocess.run([*mounting, *shell], check=False, capture_output=True, text=True)
        assert found.returncode == status, found.stderr
        if status:
            [line] = found.stderr.splitlines()
            assert line.startswith(f"error: {output}/set/manifest.json cannot be written: No space left on device (as ")
            assert "as many files are there as it can hold" in line


# A small disk that fills up, and is then made larger.
SMALL_DISK = """
mount -t tmpfs -o size=2m small "$1" || exit 99
shift
"$@"; first=$?
left=$(ls "$RUN/checkpoints" | tr '\\n' ' ')
mount -o remount,size=200m small "$(dirname "$RUN")"
"$@"; second=$?
echo "ends: $first $second, left: $left, in the end: $(ls "$RUN/checkpoints" | tr '\\n' ' ')"
"""


def test_a_disk_that_fills_up_ends_the_training_with_one_line_and_it_goes_on(mounting, tmp_path):
    settings = (*program.TINY, "--config.training.save_every=2 steps", "--config.training.keep_checkpoints=100")
    duration = "--config.training.duration=40 steps"
    command = program.flags(tmp_path / "run", "train", *settings, duration)
    shell = ["sh", "-c", SMALL_DISK, "sh", str(tmp_path), sys.executable, str(program.ROOT / "main.py"), *command]
    environment = program.environment(RUN=str(tmp_path / "run"))
    found = subprocess.run([*mounting, *shell], check=False, capture_output=True, text=True, env=environment)
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
