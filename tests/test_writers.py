"""What was written comes back; what a kill or a disk left of it is passed over."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from score_sde.writers import MetricWriter, read_arrays, read_metrics, write_arrays, write_json

ARRAYS = {"x": np.arange(1000, dtype=np.float32), "n": np.int64(3)}

DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one byte": lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:],
    "something else": lambda content: b"damaged",
}


def test_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {"x": ARRAYS["x"].tolist(), "n": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_arrays_are_none(damage, tmp_path):
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    path.write_bytes(damage(path.read_bytes()))
    assert read_arrays(path) is None


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([print], dtype=object))
    assert read_arrays(tmp_path / "a.npz") is None
    assert read_arrays(tmp_path / "absent.npz") is None


def test_metrics_pass_over_what_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2.0}\n\xff\xfe\n{"step": "a"}\n[]\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo'
    )
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert read_metrics(tmp_path) == []


def test_resuming_drops_what_will_be_made_again(tmp_path):
    for resumed_at, step in ((0, 1), (1, 2), (1, 3)):
        writer = MetricWriter(tmp_path, resumed_at)
        writer.scalars(step, {"loss": float(step)})
        writer.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5}


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path):
    program = "from score_sde.writers import say\nfor n in range(20000): say(str(n))\nopen('done', 'w').close()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018
        process.stdout.readline()
        process.stdout.close()
        message = process.stderr.read()
        assert process.wait(60) == 0, message
    assert (tmp_path / "done").exists()
