"""Images of a user's own: a folder of PNG and JPEG files, as levels of a source's shape.

A pixel's 8-bit value v becomes the level round(v (K − 1)/255), which undoes how the project's own pictures are made.
Files are decoded by Pillow as PNG or JPEG and nothing else; their size is checked before their pixels are read.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from score_sde.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}
EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # what converts to them without losing bits


def read_folder(
    folder: Path, shape: tuple[int, ...], levels: int
) -> tuple[UInt8[np.ndarray, "n height width channels"], list[str]]:
    """The images directly in `folder`, by name, and their names.

    Raises UserError where it is no readable folder, or holds no image, or one that is damaged, of another size than
    `shape`, of more than 8 bits or not opaque.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give test, train or a folder of PNG or JPEG images")
    if len(shape) != 3 or shape[2] not in MODES:
        raise UserError(f"images from a folder need data of 1 or 3 channels, not of shape {shape}")
    try:
        paths = sorted(path for path in folder.iterdir() if _is_image(path))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    if not paths:
        raise UserError(f"there is no image in {folder}; it takes files ending in {', '.join(SUFFIXES)}")
    values = np.stack([_read(path, shape) for path in paths])
    return np.round(values.astype(np.float64) * (levels - 1) / 255).astype(np.uint8), [path.name for path in paths]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "height width channels"]:
    height, width, channels = shape
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.size != (width, height):
                raise UserError(
                    f"{path} is {image.size[0]}x{image.size[1]} pixels, the model's images are {width}x{height}"
                )
            if image.mode not in EIGHT_BITS:
                raise UserError(f"{path} has pixels of mode {image.mode!r}; save it with 8 bits a colour")
            see_through = "A" in image.mode or "transparency" in image.info
            if see_through and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise UserError(f"{path} is not opaque; save it without transparency")
            return np.asarray(image.convert(MODES[channels]), np.uint8).reshape(shape)
    # Pillow raises these, and nothing narrower, for files that are damaged.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable PNG or JPEG image: {error}") from error
