"""Resizing for feature networks: closed forms, and clean-fid's and TensorFlow 1's own results.

The latter are recorded by fixtures/record_resize.py.
"""

import numpy as np
import pytest

from score_sde.data.decoding import as_uint8
from score_sde.errors import UserError
from score_sde.evaluation.resize import RESAMPLINGS, as_pixels, check_channels, coloured, resized
from tests.recorded import FIXTURES

PILLOW = ("bicubic", "lanczos")


@pytest.fixture(scope="module")
def stored():
    with np.load(FIXTURES / "resize.npz") as file:
        return dict(file)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("case", ["smaller", "larger", "both"])
def test_other_implementations_results_come_out(stored, resampling, case):
    expected = stored[f"{resampling}/{case}"]
    found = resized(stored["images"].astype(np.float32), expected.shape[1:3], resampling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # of 255


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("size", [(5, 9), (40, 31)])
def test_an_image_of_one_colour_stays_it(resampling, size):
    colour = np.float32([[[[0.0, 100.3, 255.0]]]])
    found = resized(np.broadcast_to(colour, (2, 16, 20, 3)), size, resampling)
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found, np.broadcast_to(colour, found.shape), rtol=0, atol=1e-4)


def wave(places, frequency):
    """128 + 100 cos along the width, as images (1, 8, places, 1); places: in pixels of the larger image."""
    row = 128 + 100 * np.cos(2 * np.pi * frequency * places)
    return np.broadcast_to(row.astype(np.float32)[None, None, :, None], (1, 8, len(row), 1))


def shrunk(resampling, frequency):
    """The wave on 64 pixels, shrunk to 16, at their centres; without the ends, where the image is not known beyond."""
    small = resized(wave(np.arange(64) + 0.5, frequency), (2, 16), resampling)
    return small[0, 0, 2:-2, 0], wave((np.arange(16) + 0.5) * 4, frequency)[0, 0, 2:-2, 0]


@pytest.mark.parametrize("resampling", PILLOW)
def test_what_the_smaller_image_can_show_is_kept_in_its_place(resampling):
    found, exact = shrunk(resampling, 1 / 32)
    assert np.abs(found - exact).max() < 100 * 0.03


@pytest.mark.parametrize("frequency", [0.24, 0.31, 0.4])
def test_what_it_cannot_show_is_left_out_by_antialiasing_alone(frequency):
    """The exact low-passed image is grey: 0.125 is the highest frequency on a quarter of the pixels."""
    worst = {name: np.abs(shrunk(name, frequency)[0] - 128).max() for name in RESAMPLINGS}
    assert max(worst[name] for name in PILLOW) < 100 * 0.06
    assert worst["tensorflow1"] > 100 * 0.5


def test_tensorflow_1_moves_the_image():
    """By 1.5 of the larger image's pixels, from centres to corners; the moved wave is what comes out."""
    found, exact = shrunk("tensorflow1", 1 / 32)
    moved = wave(np.arange(16) * 4 + 0.5, 1 / 32)[0, 0, 2:-2, 0]
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-3)
    assert np.abs(found - exact).max() > 100 * 0.2


def test_an_image_of_the_size_is_left_alone():
    image = np.float32(np.random.default_rng(0).uniform(0, 255, (1, 6, 5, 3)))
    np.testing.assert_array_equal(resized(image, (6, 5), "bicubic"), image)


def test_the_result_stays_within_the_range():
    edge = np.zeros((1, 8, 8, 1), np.float32)
    edge[:, :, 4:] = 255
    for name in RESAMPLINGS:
        found = resized(edge, (8, 29), name)
        assert (found.min(), found.max()) == (0, 255)


def test_levels_become_pixels_without_rounding_and_bytes_with_it():
    np.testing.assert_array_equal(
        as_pixels(np.array([0, 8, 16]).reshape(1, 1, 3, 1), 17).ravel(), np.float32([0, 127.5, 255])
    )
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(as_pixels(every, 256), every)
    np.testing.assert_array_equal(as_uint8(as_pixels(every, 256)), every)
    np.testing.assert_array_equal(as_uint8(np.array([-3.0, 0.4, 0.6, 99.5001, 254.6, 300.0])), [0, 0, 1, 100, 255, 255])
    uniform = np.random.default_rng(0).uniform(0, 255, 100_000)
    assert abs((as_uint8(uniform) - uniform).mean()) < 0.005  # cutting off would make it −0.5


def test_grey_images_get_three_channels():
    grey = np.float32(np.arange(12).reshape(1, 3, 4, 1))
    np.testing.assert_array_equal(coloured(grey), np.concatenate([grey] * 3, axis=-1))
    colours = np.zeros((1, 3, 4, 3), np.float32)
    assert coloured(colours).shape == colours.shape
    for shape in [(3, 4, 2), (4,), (3, 4, 4)]:
        with pytest.raises(UserError, match="'inception' takes images of 1 or 3 channels"):
            check_channels("inception", shape)
