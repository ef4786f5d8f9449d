"""Image sets of TensorFlow Datasets, read without TensorFlow: prepared as array_record, through its random access.

Images are cut to their central square and resized to `size` by area, as 8 bits a colour. All of a part is held in
memory.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from score_sde.data.source import Records
from score_sde.errors import Checks, UserError

MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS:
    """name: of the data set, `cifar10` or `lsun/bedroom`. size, channels: of the images as the model sees them.
    classes: of its field `label`, 0 for none. train, test: parts. low, high: what the 256 levels are scaled to.
    directory: where it was prepared, "" for TensorFlow Datasets' own default."""

    name: str = "cifar10"
    size: int = 32
    channels: int = 3
    classes: int = 0
    train: str = "train"
    test: str = "test"
    low: float = -1.0
    high: float = 1.0
    directory: str = ""

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(bool(self.name), "name must be that of a data set of TensorFlow Datasets")
            check.that(self.size >= 1, f"size must be at least 1, not {self.size}")
            check.that(self.channels in MODES, f"channels must be 1 or 3, not {self.channels}")
            check.that(self.classes >= 0, f"classes must be at least 0, not {self.classes}")
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, self.channels)

    @property
    def levels(self) -> int:
        return 256

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test". Raises UserError where the set is not prepared, with the command that does."""
        import tensorflow_datasets as tfds  # slow to import, and needed by this source alone

        part = {"train": self.train, "test": self.test}[name]
        directory = self.directory or os.environ.get("TFDS_DATA_DIR") or str(Path.home() / "tensorflow_datasets")
        try:
            records = tfds.data_source(self.name, split=part, data_dir=directory, download=False)
        except Exception as error:  # what TensorFlow Datasets raises differs with what is missing
            reason = " ".join(f"{error}".split())[:160]
            raise UserError(
                f"data: {self.name} is not prepared in {directory} ({reason}); on a machine with TensorFlow run: "
                f"tfds build {self.name} --file_format=array_record --data_dir={directory}"
            ) from error
        images = np.zeros((len(records), *self.shape), np.uint8)
        labels = np.zeros(len(records), np.int32)
        for number, record in enumerate(records):
            images[number] = self._resized(record["image"])
            labels[number] = record["label"] if self.classes else 0
        return Records({"image": images} | ({"label": labels} if self.classes else {}))

    def _resized(self, value: np.ndarray) -> np.ndarray:
        value = np.asarray(value)
        image = Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value).convert(MODES[self.channels])
        side = min(image.size)
        left, top = (image.size[0] - side) // 2, (image.size[1] - side) // 2
        square = image.crop((left, top, left + side, top + side))
        if side != self.size:
            square = square.resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(square, np.uint8).reshape(self.shape)
