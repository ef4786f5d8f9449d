"""Images in IDX files, as MNIST and the sets made after it come: `data.source=idx:FOLDER`.

A folder has four of them, with `train` and with `t10k` or `test` in their names, and with `images` and `labels`; those
that end in .gz are gzipped. IDX is the number 0x0800 + axes, the sizes of the axes, of big-endian 32 bits each, and the
bytes of the array.

Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", 1998.
"""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from score_sde.data.source import InMemory, Records
from score_sde.errors import Checks, UserError

MAGIC = 0x0800  # of bytes without a sign, plus the number of axes
PARTS = {"train": ("train",), "test": ("t10k", "test")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IDX:
    """directory: where the four files are. sides: height and width of the images. low, high: what the 256 levels are
    scaled to."""

    ARGUMENT = "directory"

    directory: str = ""
    sides: tuple[int, ...] = (28, 28)
    classes: int = 10
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            two = len(self.sides) == 2 and min(self.sides) >= 1
            check.that(two, f"sides must be a height and a width, not {self.sides}")
            check.that(self.classes >= 1, f"classes must be at least 1, not {self.classes}")
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.sides, 1)

    @property
    def levels(self) -> int:
        return 256

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with fields `image` and `label`. Raises UserError where a file is missing or damaged."""
        if not self.directory:
            raise UserError("data: which folder of IDX files? set data.source=idx:FOLDER")
        folder = Path(self.directory)
        paths = [_find(folder, name, kind) for kind in ("images", "labels")]
        return read_part(paths[0], paths[1], self.sides, self.classes)


def _find(folder: Path, name: str, kind: str) -> Path:
    """The one file of a part, "train" or "test", and kind, "images" or "labels"."""
    if not folder.is_dir():
        raise UserError(f"data: {folder} is no folder; data.source=idx:FOLDER takes one with four IDX files")
    fits = lambda file: kind in file and "idx" in file and any(word in file for word in PARTS[name])
    found = sorted(path for path in folder.iterdir() if fits(path.name.lower()))
    if len(found) != 1:
        example = f"{PARTS[name][0]}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
        several = f": {', '.join(path.name for path in found)}" if found else ""
        raise UserError(
            f"data: {folder} must hold one file of {name} {kind}, such as {example}, not {len(found)}{several}"
        )
    return found[0]


def read_part(images: Path, labels: Path, sides: tuple[int, ...], classes: int) -> InMemory:
    """The records of an images' and a labels' file. Raises UserError where they are damaged or not as the rest says."""
    image, label = _read(images, axes=3), _read(labels, axes=1)
    if image.shape[1:] != tuple(sides):
        given, wanted = ("x".join(map(str, each)) for each in (image.shape[1:], sides))
        raise UserError(f"data: {images} holds images of {given} pixels, not {wanted}")
    if len(image) != len(label) or len(image) == 0:
        raise UserError(f"data: {images} holds {len(image)} images and {labels} {len(label)} labels")
    if label.max() >= classes:
        raise UserError(f"data: {labels} holds label {label.max()}; there are {classes}, from 0")
    return InMemory({"image": image[..., None], "label": label.astype(np.int32)})


def _read(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """The array of one file."""
    try:
        stored = path.read_bytes()
        content = gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:  # what gzip raises for damaged files, and the system's own
        raise UserError(f"data: {path} cannot be read: {error}") from error
    start = 4 * (1 + axes)
    magic, *sizes = (int.from_bytes(content[place : place + 4], "big") for place in range(0, start, 4))
    if magic != MAGIC + axes:
        wanted = f"it begins with {magic:#06x}, not {MAGIC + axes:#06x}"
        raise UserError(f"data: {path} is no IDX file of bytes along {axes} axes: {wanted}")
    if len(content) != start + math.prod(sizes):
        given = "x".join(map(str, sizes))
        raise UserError(f"data: {path} should hold {given} bytes after its first {start}, not {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
