r"""Images to the size and the values that a feature network takes; Fréchet distances depend on how this is done.

    bicubic, lanczos    y_i = Σ_j w((j + ½ − s (i + ½))/m) x_j / Σ_j w(…), s the input's size over the output's and
                        m = max(s, 1): the kernel w grows with the step between samples, which keeps out what the
                        smaller image cannot show (antialiasing). Along each axis in turn, in float32, never rounded
    tensorflow1         y_i = (1 − f) x_⌊si⌋ + f x_⌊si⌋₊₁, f = s i − ⌊s i⌋, whatever s: what TensorFlow 1 did, and with
                        it most published FIDs. It aliases where images shrink, and shifts them by up to half a pixel

The result is cut to [0, 255], which bicubic and Lanczos overshoot at edges.

Source: Parmar, Zhang & Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", 2022 (clean-fid).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Integer
from PIL import Image

from score_sde.errors import UserError

Pixels = Float32[np.ndarray, "n height width channels"]


def as_pixels(images: Integer[np.ndarray, "n height width channels"], levels: int) -> Pixels:
    """Levels 0 … K − 1 as pixels in [0, 255], not rounded."""
    return images.astype(np.float32) * np.float32(255 / (levels - 1))


def check_channels(extractor: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless images of `shape` are grey or of three colours."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise UserError(f"the extractor {extractor!r} takes images of 1 or 3 channels, not of shape {shape}")


def coloured(images: Pixels) -> Pixels:
    """Three channels: grey images with theirs repeated."""
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def resized(images: Pixels, size: tuple[int, int], resampling: str) -> Pixels:
    """Images of `size`, (height, width), in [0, 255]. resampling: a row of `RESAMPLINGS`."""
    if images.shape[1:3] == size:
        return images
    return RESAMPLINGS[resampling](images, size).clip(0, 255)


def _by_pillow(kernel: Image.Resampling) -> Callable[[Pixels, tuple[int, int]], Pixels]:
    def resize(images: Pixels, size: tuple[int, int]) -> Pixels:
        planes = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])  # an image a channel
        one = lambda plane: np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], kernel))
        with ThreadPoolExecutor() as pool:  # Pillow computes outside of Python's lock
            rows = list(pool.map(one, planes))
        return np.moveaxis(np.reshape(rows, (len(images), images.shape[-1], *size)), 1, -1)

    return resize


def _tensorflow1(images: Pixels, size: tuple[int, int]) -> Pixels:
    for axis, length in ((2, size[1]), (1, size[0])):
        count = images.shape[axis]
        place = np.arange(length, dtype=np.float32) * np.float32(count / length)
        low = np.floor(place).astype(int)
        share = (place - np.floor(place)).reshape(-1, *(1,) * (3 - axis))
        left, right = (images.take(index, axis) for index in (low, np.minimum(low + 1, count - 1)))
        images = left + (right - left) * share
    return images


RESAMPLINGS: dict[str, Callable[[Pixels, tuple[int, int]], Pixels]] = {
    "bicubic": _by_pillow(Image.Resampling.BICUBIC),
    "lanczos": _by_pillow(Image.Resampling.LANCZOS),
    "tensorflow1": _tensorflow1,
}
