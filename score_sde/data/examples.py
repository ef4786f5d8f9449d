"""Image records of TensorFlow Datasets, `{"image": …, "label": …}`, of which each is read and decoded when asked for.

Its images are stored as files, which `decoding` decodes, or as arrays of 8 bits a colour.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data.decoding import DamagedImage, Pixels, as_channels, decode_image, to_square
from score_sde.data.on_demand import OnDemand, sampled
from score_sde.data.source import digest_of
from score_sde.errors import UserError

FEATURES = "features.json"


@dataclasses.dataclass(frozen=True)
class Examples(OnDemand):
    """title: of the set, version and part included. See `examples`."""

    source: "Deserialised"
    title: str
    labelled: bool
    classes: int
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of title and settings, and of 1,000 records spread evenly."""

        def parts():
            yield from ("examples", self.title, len(self), self.labelled, self.size, self.channels)
            for number in sampled(len(self)):
                image = self.source[number]["image"]
                yield image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()

        return digest_of(parts())

    def image(self, number: int) -> tuple[Pixels, int]:
        """See `OnDemand`."""
        record = self._record(number)
        image = record["image"]
        if isinstance(image, bytes | np.bytes_):
            pixels = decode_image(bytes(image), self.channels)
        else:
            pixels = as_channels(_pixels(np.asarray(image)), self.channels)
        return to_square(pixels, self.size), self._label(record)

    def label(self, number: int) -> int:
        """See `OnDemand`."""
        return self._label(self._record(number)) if self.labelled else 0

    def name(self, number: int) -> str:
        """See `OnDemand`."""
        return f"record {number} of {self.title}"

    def _record(self, number: int) -> dict[str, Any]:
        try:
            return self.source[number]
        except (ValueError, RuntimeError, IndexError, OSError) as error:  # of array_record and protobuf
            raise DamagedImage(f"it is damaged: {error}") from error

    def _label(self, record: dict[str, Any]) -> int:
        if not self.labelled:
            return 0
        label = int(record["label"])
        if not 0 <= label < self.classes:
            raise DamagedImage(f"its label is {label}; data.classes={self.classes} has 0 to {self.classes - 1}")
        return label


def _pixels(image: np.ndarray) -> Pixels:
    """An array as pixels."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise DamagedImage(f"its image is of {image.dtype} and shape {image.shape}, not of 8 bits and 1 or 3 channels")
    return image if image.ndim == 3 else image[..., None]


@dataclasses.dataclass(frozen=True)
class Deserialised:
    """Serialised records, and the folder where `FEATURES` says what is in them. Images that are stored as files are
    left as files, for `decoding`."""

    records: Sequence[bytes]
    folder: Path

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        features, decoders = _features(self.folder)
        return features.deserialize_example_np(self.records[number], decoders=decoders)


def examples(source: Deserialised, title: str, classes: int, size: int, channels: int) -> Examples:
    """The records, with labels where there are classes. Raises UserError where they lack what is asked for."""
    features, _ = _features(source.folder)
    for field, remedy in (("image", ""), *((("label", ": set data.classes=0"),) if classes else ())):
        if field not in features:
            has = ", ".join(sorted(features))
            raise UserError(f"data: the records of {title} have no field {field!r}, but {has}{remedy}")
    return Examples(source, title, classes > 0, classes, size, channels)


@functools.lru_cache(maxsize=8)
def _features(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What is in the records, and what is not to be decoded of it."""
    import tensorflow_datasets as tfds  # slow to import

    try:
        features = tfds.features.FeaturesDict.from_config(str(folder))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"data: {folder / FEATURES} cannot be read: {error}") from error
    as_file = "image" in features and isinstance(features["image"], tfds.features.Image)
    return features, {"image": tfds.decode.SkipDecoding()} if as_file else {}
