"""Image sets of TensorFlow Datasets, read without TensorFlow: prepared as array_record, through its random access.

Images are cut to their central square and resized to `size` by area, as 8 bits a colour. All of a part is held in
memory.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from score_sde.data.source import Records, SquareImages
from score_sde.errors import Checks, UserError

MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(SquareImages):
    """name: of the data set, `cifar10` or `lsun/bedroom`. channels: 1 or 3. train, test: parts. directory: where it was
    prepared, "" for TensorFlow Datasets' own default."""

    name: str = "cifar10"
    train: str = "train"
    test: str = "test"
    directory: str = ""

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_images(check)
            check.that(bool(self.name), "name must be that of a data set of TensorFlow Datasets")
            check.that(self.channels in MODES, f"channels must be 1 or 3, not {self.channels}")

    def split(self, name: str) -> Records:
        """ "train" or "test". Raises UserError where there is no such set, or it is not prepared, or damaged."""
        import tensorflow_datasets as tfds  # slow to import, and needed by this source alone
        from google.protobuf import json_format

        part = {"train": self.train, "test": self.test}[name]
        directory = self.directory or os.environ.get("TFDS_DATA_DIR") or str(Path.home() / "tensorflow_datasets")
        try:
            records = tfds.data_source(self.name, split=part, data_dir=directory, download=False)
        except tfds.core.registered.DatasetNotFoundError as error:
            catalog = "https://www.tensorflow.org/datasets/catalog/overview"
            raise UserError(
                f"data: TensorFlow Datasets has no set {self.name!r}; they are listed in {catalog}"
            ) from error
        except NotImplementedError as error:  # what it takes a set for that it does not find, too
            raise UserError(
                f"data: {self.name} is not prepared as array_record in {directory}; on a machine with TensorFlow run: "
                f"tfds build {self.name} --file_format=array_record --data_dir={directory}"
            ) from error
        except (AssertionError, ValueError, OSError, json_format.Error) as error:
            reason = " ".join(f"{error}".split())[:300]
            raise UserError(f"data: {self.name} in {directory} cannot be read: {reason}") from error
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
