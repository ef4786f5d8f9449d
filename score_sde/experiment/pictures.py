"""Grids of images, as PNG."""

import math
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from score_sde.writers import write_atomically


def grid(
    images: UInt8[np.ndarray, "n height width channels"], *, columns: int | None = None, smallest: int = 32
) -> UInt8[np.ndarray, "grid_height grid_width channels"]:
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


def write_png(path: Path, picture: UInt8[np.ndarray, "height width channels"]) -> None:
    """Grey for one channel, RGB for three; atomically."""
    if jax.process_index() == 0:
        image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
        write_atomically(path, lambda temporary: image.save(temporary, format="png"))
