"""Fashion-MNIST: 70,000 photographs of clothes, 28×28 grey pixels of 256 levels, 10 classes.

Read from the four files of the original, as Debian's package dataset-fashion-mnist installs them: gzip around IDX,
which is the number 0x0800 + axes, the sizes of the axes, of big-endian 32 bits each, and the bytes of the array.

Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017.
"""

import dataclasses
import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from score_sde.data.source import Records
from score_sde.errors import Checks, UserError

SIDE = 28
CLASSES = 10
FILES = {"train": "train", "test": "t10k"}
MAGIC = 0x0800  # of bytes without a sign, plus the number of axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMNIST:
    """directory: where the four files are. low, high: what the 256 levels are scaled to."""

    directory: str = "/usr/share/datasets/fashion-mnist"
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (SIDE, SIDE, 1)

    @property
    def levels(self) -> int:
        return 256

    @property
    def classes(self) -> int:
        return CLASSES

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with fields `image` and `label`. Raises UserError where a file is missing or damaged."""
        folder, part = Path(self.directory), FILES[name]
        images, labels = folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"
        image, label = _read(images, axes=3), _read(labels, axes=1)
        if image.shape[1:] != (SIDE, SIDE):
            sides = f"{image.shape[1]}x{image.shape[2]}"
            raise UserError(f"data: {images} holds images of {sides} pixels, not {SIDE}x{SIDE}")
        if len(image) != len(label) or len(image) == 0:
            raise UserError(f"data: {images} holds {len(image)} images and {labels} {len(label)} labels")
        if label.max() >= CLASSES:
            raise UserError(f"data: {labels} holds label {label.max()}; there are {CLASSES}, from 0")
        return Records({"image": image[..., None], "label": label.astype(np.int32)})


def _read(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """The array of one file."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"data: there is no {path}; run: apt-get install dataset-fashion-mnist, or set data.directory to the "
            "folder of its four files"
        ) from error
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
