r"""Image files to arrays of 8 bits a colour: the only place that decodes one.

PNG, JPEG, WebP, BMP and GIF, told by their content and not by their name. What is done with them:

    16 bits a colour       v becomes round(v/257), so that 65535 becomes 255
    alpha, or a colour     over white: round((a v + (255 − a) 255)/255)
      that is transparent
    palette, 1 bit, CMYK   their colours; CMYK by Pillow's formula, without a profile
    an animation           its first frame
    EXIF's orientation     is applied
    colour asked as grey   ITU-R 601's luma, (299 R + 587 G + 114 B)/1000; grey asked as colour is repeated

Refused: what is damaged or cut short, what claims more than Pillow's limit of 179 million pixels, and other pixels than
these (32-bit integers, floats).
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CHANNELS = (1, 3)
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF's tag
# Pillow reads PNG's 16 bits a colour by their upper byte alone. Decoded once for each of these, it gives all bytes.
BYTES_OF_DEEP_PNG = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}

Pixels = UInt8[np.ndarray, "height width channels"]
Colours = Float[np.ndarray, "height width channels"]

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # given at half the size that is refused


class DamagedImage(Exception):
    """An image that cannot be used. Its message is the reason, without the name."""


def decode_image(content: bytes, channels: int) -> Pixels:
    """The pixels of a file, with 1 channel or 3. Raises DamagedImage."""
    with _reasons():
        pixels, orientation = _decoded(content)
    return as_channels(_turned(pixels, orientation), channels)


def stored_size(content: bytes) -> tuple[int, int]:
    """(height, width) by a file's first bytes alone, before EXIF's orientation is applied. Raises DamagedImage."""
    with _reasons(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.height, image.width


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Raises DamagedImage for what Pillow raises."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise DamagedImage("it claims to have more than 179 million pixels") from error
    except UnidentifiedImageError as error:
        raise DamagedImage(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    # Pillow raises these, and nothing narrower, for files that are damaged.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error) as error:
        raise DamagedImage(f"it is damaged: {' '.join(str(error).split())[:200]}") from error


def as_channels(pixels: Pixels, channels: int) -> Pixels:
    """Pixels of 1 channel or 3, as 1 or 3."""
    if pixels.shape[2] == channels:
        return np.ascontiguousarray(pixels)
    if channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    return np.repeat(pixels, channels, axis=2)


def to_square(image: Pixels, size: int, resampling: str = "area") -> Pixels:
    """The central square, resized to `size` a side without aliasing, and rounded once. resampling: "area", each pixel
    the mean of what it covers, or "lanczos", sharper."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    return as_uint8(RESAMPLINGS[resampling](square, size))


def as_uint8(pixels: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Cut to [0, 255] and rounded: cutting the fraction off would darken them by half a level on average."""
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def _area(square: Pixels, size: int) -> Colours:
    """The mean over each new pixel of the old ones that it covers, wholly or in part. Pillow's box filter counts pixels
    as a whole."""
    along_columns = _means(square.astype(np.float64), size)
    return _means(along_columns.swapaxes(0, 1), size).swapaxes(0, 1)


def _means(x: Colours, size: int) -> Colours:
    """Along the first axis, by differences of the integral: sums of whole numbers are exact."""
    edge = np.arange(size + 1) * len(x) / size
    whole = np.minimum(edge.astype(int), len(x) - 1)
    before = np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, axis=0)])
    return np.diff(before[whole] + (edge - whole)[:, None, None] * x[whole], axis=0) * (size / len(x))


def _lanczos(square: Pixels, size: int) -> Colours:
    planes = [Image.fromarray(plane) for plane in np.moveaxis(square.astype(np.float32), 2, 0)]  # not rounded between
    return np.stack([np.asarray(each.resize((size, size), Image.Resampling.LANCZOS)) for each in planes], axis=2)


RESAMPLINGS = {"area": _area, "lanczos": _lanczos}


def _decoded(content: bytes) -> tuple[Pixels, int]:
    """Opaque pixels of 1 channel or 3 as they are stored, and EXIF's orientation."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.format == "PNG":
            image.verify()  # the checksums, which loading leaves out, and that the end is there
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        rawmode = image.tile[0].args if image.format == "PNG" and image.tile else None
        if rawmode in BYTES_OF_DEEP_PNG:
            pixels = _deep_colour(content, rawmode)
            key = image.info.get("transparency")
            pixels = _opaque(pixels, key if rawmode == "RGB;16B" else None)
        elif image.mode.startswith("I;16"):
            pixels = _opaque(np.asarray(image, np.uint16)[..., None], image.info.get("transparency"))
        elif image.mode in GREY + COLOUR:
            pixels = _shallow(image)
        else:
            raise ValueError(f"pixels of mode {image.mode!r} are none of 8 or 16 bits a colour")
        image.load()  # also what stands after the pixels
        return pixels, image.getexif().get(ORIENTATION, 1)


def _shallow(image: Image.Image) -> Pixels:
    """Of 8 bits a colour, or fewer."""
    grey = image.mode in GREY
    if "A" in image.mode or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        return _over_white(rgba[..., :1] if grey else rgba[..., :3], rgba[..., 3:])
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _deep_colour(content: bytes, rawmode: str) -> UInt16[np.ndarray, "height width channels"]:
    """A PNG's 16 bits a colour, with alpha where it has one."""
    parts = []
    for each in BYTES_OF_DEEP_PNG[rawmode]:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.tile = [tile._replace(args=each) for tile in image.tile]
            parts.append(np.asarray(image).astype(np.uint16))
    high, low = parts if len(parts) == 2 else (parts[0][..., 0::2], parts[0][..., 1::2])
    return high << 8 | low


def _opaque(pixels: UInt16[np.ndarray, "height width channels"], transparent: object) -> Pixels:
    """16 bits a colour to 8. transparent: the colour that is, or None."""
    colours = pixels.shape[2] - 1 if pixels.shape[2] in (2, 4) else pixels.shape[2]
    rounded = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if transparent is not None:
        seen = (pixels != np.asarray(transparent)).any(axis=2, keepdims=True)
        return _over_white(rounded, np.where(seen, 255, 0).astype(np.uint8))
    return rounded if colours == pixels.shape[2] else _over_white(rounded[..., :colours], rounded[..., colours:])


def _over_white(colour: Pixels, alpha: UInt8[np.ndarray, "height width 1"]) -> Pixels:
    c, a = colour.astype(np.uint32), alpha.astype(np.uint32)
    return ((2 * (a * c + (255 - a) * 255) + 255) // 510).astype(np.uint8)


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """As EXIF's orientation says that it is to be shown; unknown ones as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
