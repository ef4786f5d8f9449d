"""Samples as pictures, in PNG: grids of images, points of the plane as dots, sounds as their waveforms."""

import math
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from score_sde.data import Levels
from score_sde.writers import write_atomically

POINTS = 2000  # that a picture of points is of
POINT_PIXELS = 150
INK = np.array([20, 60, 120])
WAVEFORM = (48, 192)  # pixels

Picture = UInt8[np.ndarray, "height width channels"]


def draw(data: Shaped[np.ndarray, "n *shape"], levels: Levels, *, columns: int | None = None) -> Picture:
    """Data as they are stored: points (dim,) by their first two coordinates, sounds (time, channels), images."""
    if data.ndim == 2:
        middle, half = 0.5 * (levels.low + levels.high), 0.625 * (levels.high - levels.low)
        return scatter(data, (middle - half, middle + half))
    values = np.clip(levels.unit(np.nan_to_num(data)), 0, 1)
    if data.ndim == 3:
        return grid(np.stack([_waveform(sound) for sound in values]), columns=columns)
    return grid(np.round(255 * values).astype(np.uint8), columns=columns)


def scatter(points: Float[np.ndarray, "n dim"], ends: tuple[float, float]) -> Picture:
    """The first two coordinates as dots, in the square from the one end to the other on both axes."""
    across, up = points[:, 0], points[:, min(1, points.shape[1] - 1)]
    low, high = ends
    count, _, _ = np.histogram2d(-up, across, bins=POINT_PIXELS, range=((-high, -low), (low, high)))
    ink = 1 - np.exp(-0.8 * count)[..., None]
    return np.round(255 + ink * (INK - 255)).astype(np.uint8)


def _waveform(sound: Float[np.ndarray, "time channels"]) -> Picture:
    """Values in [0, 1], the channels below one another; each column of pixels from the least to the largest value."""
    height, width = WAVEFORM
    row, lanes = np.arange(height)[:, None], []
    for channel in sound.T:
        column = np.arange(len(channel)) * width // len(channel)
        least, most = np.full(width, np.inf), np.full(width, -np.inf)
        np.minimum.at(least, column, channel)
        np.maximum.at(most, column, channel)
        top, bottom = ((1 - each) * (height - 1) for each in (most, least))
        lanes.append((row >= np.floor(top)) & (row <= np.ceil(bottom)))
    inked = np.concatenate(lanes)[..., None]
    return np.where(inked, INK, 255).astype(np.uint8)


def grid(
    images: UInt8[np.ndarray, "n height width channels"], *, columns: int | None = None, smallest: int = 32
) -> Picture:
    """The images side by side with a gap, small ones enlarged by whole pixels to at least `smallest`."""
    count, height, width, channels = images.shape
    factor = max(1, math.ceil(smallest / min(height, width)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = 2
    cell_height, cell_width = height * factor + gap, width * factor + gap
    canvas = np.full((rows * cell_height + gap, columns * cell_width + gap, channels), 90, np.uint8)
    for number, image in enumerate(images):
        top, left = gap + number // columns * cell_height, gap + number % columns * cell_width
        canvas[top : top + height * factor, left : left + width * factor] = image
    return canvas


def write_png(path: Path, picture: Picture) -> None:
    """Grey for one channel, RGB for three; atomically."""
    if jax.process_index() == 0:
        image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        write_atomically(path, lambda temporary: image.save(temporary, format="png"))
