"""Signals as a request to stop, alone and where JAX's runtime listens for SIGTERM in our place."""

import os
import signal

import pytest

from score_sde.training.interrupt import Interrupted, StopRequest


def test_a_signal_is_heeded_at_the_next_safe_point(capfd):
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM: finishing" in capfd.readouterr().err
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("early", [True, False])
def test_whoever_listens_in_our_place_is_told(number, early):
    """Of a signal that came before it listened, too: while modules were imported, or hosts waited for each other."""
    told = []
    with StopRequest() as stop:
        if early:
            os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, lambda *_: told.append(number))  # as JAX's runtime does
        stop.agree_by(lambda call: bool(told) and call >= 3)
        if not early:
            os.kill(os.getpid(), number)
        assert told == [number]
        assert [stop.due() is not None for _ in range(4)] == [False, False, True, True]
