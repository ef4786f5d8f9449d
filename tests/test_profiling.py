"""Traces of chosen steps, and the figures of time in the log."""

import jax.numpy as jnp
import pytest

from score_sde.errors import UserError
from score_sde.training import profiling
from score_sde.training.profiling import Clock, Profiler, ProfileSettings


def test_trace_of_the_chosen_steps(tmp_path, capsys):
    profiler = Profiler(ProfileSettings(steps=(3, 4)), tmp_path)
    for done in range(6):
        profiler.before(done, 1)
        assert profiler._running == (done in (2, 3))
        profiler.after(done + 1, jnp.ones(3) + done)
    profiler.close()
    assert list(tmp_path.rglob("*.xplane.pb"))  # TensorBoard's
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))
    assert "the trace of steps 3 to 4 is in" in capsys.readouterr().out


def test_trace_that_begins_within_a_call_of_several_steps(tmp_path):
    profiler = Profiler(ProfileSettings(steps=(6, 7)), tmp_path)
    profiler.before(0, 4)
    assert not profiler._running
    profiler.before(4, 4)
    assert profiler._running
    profiler.after(8, jnp.ones(3))
    assert not profiler._running


def test_trace_of_a_run_that_goes_on_or_ends_within_it(tmp_path, capsys):
    """From step 6 on of steps 5 to 9, and the run ends after step 7."""
    profiler = Profiler(ProfileSettings(steps=(5, 9)), tmp_path, resumed_at=5)
    for done in (5, 6):
        profiler.before(done, 1)
        profiler.after(done + 1, jnp.ones(3) + done)
    profiler.close()
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert "the trace of steps 6 to 7 is in" in capsys.readouterr().out


def test_run_that_goes_on_after_the_steps_of_the_trace_says_so(tmp_path, capsys):
    profiler = Profiler(ProfileSettings(steps=(5, 9)), tmp_path, resumed_at=9)
    assert "no trace of steps 5 to 9: the run goes on from step 9" in capsys.readouterr().out
    profiler.before(9, 1)
    assert not profiler._running


def test_trace_that_fails_is_said_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    profiler = Profiler(ProfileSettings(steps=(1, 2)), tmp_path / "file")
    for done in range(3):
        profiler.before(done, 1)
        profiler.after(done + 1, jnp.ones(3))
    profiler.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("process 0 has no trace of steps from 1 on: ") == 1


@pytest.mark.parametrize("steps", [(1,), (0, 3), (5, 4), (1, 2, 3)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match="steps must be the first and the last step of the trace"):
        ProfileSettings(steps=steps)


def test_clock(monkeypatch):
    """10 s, of which 4 are no training and 3 of the rest are waited: 12 steps of 5 images and 7 FLOPs take 6 s."""
    now = [0.0]
    monkeypatch.setattr(profiling.time, "monotonic", lambda: now[0])
    clock = Clock(batch_size=5, flops=7.0, peak=28.0)
    with clock.waiting():
        now[0] += 3
    with clock.paused():
        now[0] += 4
    now[0] += 3
    assert clock.figures(12) == {
        "steps_per_second": 2.0,
        "step_seconds": 0.5,
        "images_per_second": 10.0,
        "data_wait_share": 0.5,
        "utilisation": 0.5,
    }
    now[0] += 2
    assert clock.figures(1)["data_wait_share"] == 0  # counted from the last figures on
