"""Arrays of NumPy: `data.source=npz:FILE`, with the data as `image`, `images` or `arr_0` and labels, where they are
used, as `label`, `labels` or `arr_1`.

    uint8, uint16        256 or 65,536 levels; images (n, height, width) or (n, height, width, channels)
    float32, float64     without levels, on the range: points (n, dim), or arrays of a network's shape

Pickles are refused. Shape and levels are those of the file, of which the beginning is read to build the experiment; a
file for testing must have the same.
"""

import dataclasses
import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from score_sde.data.listing import held_out
from score_sde.data.source import InMemory, Records
from score_sde.errors import DAMAGED_NPZ, Checks, UserError

DATA, LABELS = ("image", "images", "arr_0"), ("label", "labels", "arr_1")
LEVELS = {np.dtype(np.uint8): 2**8, np.dtype(np.uint16): 2**16, np.dtype(np.float32): 0, np.dtype(np.float64): 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NPZ:
    """file: of the data. test: another one, for testing; "" for `test_share` of the first. classes: 0 to leave labels
    out. low, high: what levels are scaled to, or where data without levels mostly lie."""

    ARGUMENT = "file"

    file: str = ""
    test: str = ""
    test_share: float = 0.1
    classes: int = 0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(bool(self.file), "which file? set data.source=npz:FILE")
            check.that(0 < self.test_share < 1, f"test_share must lie in (0, 1), not {self.test_share}")
            check.that(self.classes >= 0, f"classes must be at least 0, not {self.classes}")
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")
        _ = self._like  # what is wrong with the files is said here
        if self.test:
            self._check_same(Path(self.test), *_header(Path(self.test)))

    @functools.cached_property
    def _like(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of a sample of the data."""
        return _header(Path(self.file))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._like[0]

    @property
    def levels(self) -> int:
        return LEVELS[self._like[1]]

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, and `label` where there are classes. Raises UserError where a file is
        damaged, or does not fit."""
        try:
            arrays = self._read(Path(self.test if self.test and name == "test" else self.file))
            if not self.test:
                held = self._held_out(len(arrays["image"]))
                arrays = {key: array[held if name == "test" else ~held] for key, array in arrays.items()}
        except UserError as error:
            raise UserError(f"data: {error}") from error
        return InMemory(arrays)

    def _held_out(self, count: int) -> np.ndarray:
        """Which records are for testing."""
        try:
            return held_out(count, self.test_share)
        except UserError as error:
            raise UserError(f"{self.file}: {error}") from error

    def _read(self, path: Path) -> dict[str, Shaped[np.ndarray, "records ..."]]:
        try:
            with np.load(path, allow_pickle=False) as stored:
                image = stored[_key(path, stored.files, DATA)]
                image = image.astype(image.dtype.newbyteorder("="), copy=False)
                label = stored[_key(path, stored.files, LABELS)] if self.classes else None
        except DAMAGED_NPZ as error:
            raise UserError(f"{path} is no readable .npz file: {error}") from error
        self._check_same(path, _sample(image.shape, image.dtype), image.dtype)
        image = image.reshape(len(image), *self.shape)
        if not self.levels:
            with np.errstate(over="ignore"):
                image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise UserError(f"{path} holds values that are not finite, or beyond what float32 holds")
        return {"image": image} | ({} if label is None else {"label": self._checked(path, label, len(image))})

    def _check_same(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Raises UserError unless a file's samples are as those of `file`."""
        if (shape, dtype) != self._like:
            wanted = f"{self._like[1]} of shape {self._like[0]}"
            raise UserError(f"{path} holds samples of {dtype} of shape {shape}; those of {self.file} are {wanted}")

    def _checked(self, path: Path, label: Shaped[np.ndarray, "records"], count: int) -> Shaped[np.ndarray, "records"]:
        if label.shape != (count,) or label.dtype.kind not in "iu":
            raise UserError(f"{path} holds labels of {label.dtype} and shape {label.shape}, not {count} integers")
        wrong = label[(label < 0) | (label >= self.classes)]
        if len(wrong):
            raise UserError(f"{path} holds label {wrong[0]}; data.classes={self.classes} has 0 to {self.classes - 1}")
        return label.astype(np.int32)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a sample of a file's data, from the file's first bytes."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            with archive.open(f"{_key(path, there, DATA)}.npy") as array:
                shape, _, dtype = read[np.lib.format.read_magic(array)](array)
    except DAMAGED_NPZ as error:
        raise UserError(f"{path} is no readable .npz file: {error}") from error
    dtype = dtype.newbyteorder("=")  # of either order
    if dtype not in LEVELS:
        valid = ", ".join(map(str, LEVELS))
        raise UserError(f"{path} holds data of {dtype}; valid: {valid}")
    whole = LEVELS[dtype] > 0
    if len(shape) not in ((3, 4) if whole else (2, 3, 4)) or 0 in shape:
        valid = "images (n, height, width[, channels])" if whole else "points (n, dim) or arrays of up to 4 axes"
        raise UserError(f"{path} holds {dtype} of shape {shape}, not {valid}")
    return _sample(shape, dtype), dtype


def _sample(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """The shape of one of the samples; images without an axis of channels are grey."""
    return (*shape[1:], 1) if LEVELS.get(dtype) and len(shape) == 3 else shape[1:]


def _key(path: Path, there: Sequence[str], valid: Sequence[str]) -> str:
    found = [name for name in valid if name in there]
    if not found:
        raise UserError(f"{path} holds {', '.join(there) or 'nothing'}; it needs one of {', '.join(valid)}")
    return found[0]
