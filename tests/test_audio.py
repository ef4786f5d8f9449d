"""The 1-D U-Net's own."""

import pytest

from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network
from tests.networks import SMALL


def attends(**settings):
    of = Network(
        NETWORKS["audio_unet"](**{**SMALL["audio_unet"][0], "channel_multipliers": (1, 1, 1), **settings}), (8, 2)
    )
    return {path[1] for path in of.parameters() if path[0] == "down" and path[2] == "attention"}


def test_attention_is_at_the_lowest_levels():
    assert attends(attention_levels=0) == set()
    assert attends(attention_levels=1) == {2}
    assert attends(attention_levels=2) == {1, 2}


def test_convolutions_are_along_time_alone():
    """One axis of three taps, before the channels of input and output."""
    of = Network(NETWORKS["audio_unet"](**SMALL["audio_unet"][0]), (8, 2))
    kernels = [each.shape for path, each in of.parameters().items() if len(each.shape) > 2]
    assert kernels
    assert {shape[:-2] for shape in kernels} == {(3,)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_levels": 8}, r"attention_levels must lie in \[0, 7\], not 8"),
        ({"channels": 2}, "channels must be at least 4"),
        ({"block": "bigan"}, "did you mean 'biggan'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        NETWORKS["audio_unet"](**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((100, 1), "divisible by 64, not 100; the nearest is 128"),
        ((8, 8, 1), r"audio_unet takes audio \(time, channels\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        Network(NETWORKS["audio_unet"](), shape)
