"""Image sets of TensorFlow Datasets, read without TensorFlow: prepared as array_record, through its random access.

Images are cut to their central square and resized to `size` by area, as 8 bits a colour. Each is decoded when it is
asked for; those of a part that take up to 256 MB are decoded once and held in memory.
"""

import dataclasses
import os
from pathlib import Path

from score_sde.data.decoding import CHANNELS
from score_sde.data.examples import Deserialised, examples
from score_sde.data.on_demand import held_if_small
from score_sde.data.source import Records, SquareImages
from score_sde.errors import Checks, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(SquareImages):
    """name: of the data set, `cifar10` or `lsun/bedroom`. channels: 1 or 3. train, test: parts. directory: where it was
    prepared, "" for TensorFlow Datasets' own default."""

    ARGUMENT = "name"

    name: str = "cifar10"
    train: str = "train"
    test: str = "test"
    directory: str = ""

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_images(check)
            check.that(bool(self.name), "name must be that of a data set of TensorFlow Datasets")
            check.that(self.channels in CHANNELS, f"channels must be 1 or 3, not {self.channels}")

    def split(self, name: str) -> Records:
        """ "train" or "test". Raises UserError where there is no such set, or it is not prepared, or damaged."""
        import tensorflow_datasets as tfds  # slow to import, and needed by this source alone
        from google.protobuf import json_format

        part = {"train": self.train, "test": self.test}[name]
        directory = self.directory or os.environ.get("TFDS_DATA_DIR") or str(Path.home() / "tensorflow_datasets")
        try:
            builder = tfds.builder(self.name, data_dir=directory)
            stored = builder.as_data_source(split=part).data_source  # the bytes; a builder need not be fit to be sent
            records = Deserialised(stored, Path(builder.data_path))
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
        return held_if_small(
            examples(records, f"{builder.info.full_name} {part}", self.classes, self.size, self.channels), self.shape
        )
