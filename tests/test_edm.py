"""EDM's SongUNet: published sizes, and where its condition enters. Parity with the original: test_pretrained_edm."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import Network
from score_sde.models.edm import SongUNet
from tests.networks import apply, inputs, moved

NCSNPP = {
    "embedding": "fourier",
    "noise_multiplier": 2,
    "encoder": "residual",
    "resample_filter": (1.0, 3.0, 3.0, 1.0),
}
DOUBLED = {"channel_multipliers": (1, 2, 2, 2)}


@pytest.mark.parametrize(
    ("settings", "side", "count"),
    [
        ({"classes": 10}, 32, 55_735_299),
        ({}, 32, 55_733_891),
        ({"classes": 10, **NCSNPP}, 32, 56_400_643),
        (DOUBLED, 64, 61_805_571),
        ({**DOUBLED, **NCSNPP}, 64, 62_761_091),
    ],
)
def test_published_sizes(settings, side, count):
    """For CIFAR-10, FFHQ and AFHQ, counted in the original code with PyTorch."""
    known = Network(SongUNet(**settings, augment_features=9), (side, side, 3)).parameters()
    assert sum(math.prod(each.shape) for each in known.values() if each.trainable) == count


def test_an_absent_augmentation_is_zeros_and_labels_join_the_noise_level():
    variant = (("classes", 4), ("augment_features", 3))
    params = moved("song_unet", variant)
    assert params["condition"]["label"]["embedding"].shape == (5, 8)  # the width of the noise level's features
    assert params["condition"]["augment"]["kernel"].shape == (3, 8)
    x, noise = inputs("song_unet")
    of, label = apply("song_unet", variant), {"label": jnp.asarray([0, 1, -1])}
    absent = of(params, x, noise, None, label)
    zeros = of(params, x, noise, None, {**label, "augment": jnp.zeros((3, 3))})
    np.testing.assert_allclose(zeros, absent, rtol=0, atol=1e-5 * float(jnp.abs(absent).max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "residul"}, "did you mean 'residual'"),
        ({"decoder": "residual"}, "decoder"),
        ({"noise_multiplier": 0}, "noise_multiplier must be at least 1"),
        ({"resample_filter": (1.0, 2.0, 1.0)}, "even number of taps"),
        ({"channels": 2}, "channels must be at least 4"),
        ({"augment_features": -1}, "augment_features"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SongUNet(**settings)
