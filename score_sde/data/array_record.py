"""Images in array_record: `data.source=array_record:PATTERN`, of shards, or the folder that holds them.

As `scripts/prepare_dataset` writes them, with `manifest.json` beside them (`image_records`), or as TensorFlow Datasets
does, with `features.json` (`examples`). Each image is decoded when it is asked for, unless all of a part take less than
256 MB.
"""

import dataclasses
import functools
import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from score_sde.data import image_records
from score_sde.data.decoding import CHANNELS, DamagedImage, Pixels, as_channels, to_square
from score_sde.data.examples import FEATURES, Deserialised, examples
from score_sde.data.folder import check_names
from score_sde.data.image_records import MANIFEST, UNDERWAY, Manifest
from score_sde.data.listing import held_out, some
from score_sde.data.on_demand import OnDemand, held_if_small, sampled
from score_sde.data.source import Records, SquareImages, Subset, digest, digest_of
from score_sde.errors import Checks, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord(SquareImages):
    """pattern: of the shards' paths, or their folder. test: another one, for testing; "" for `test_share` of the
    first."""

    ARGUMENT = "pattern"

    pattern: str = ""
    test: str = ""
    test_share: float = 0.1

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_images(check)
            check.that(self.channels in CHANNELS, f"channels must be 1 or 3, not {self.channels}")
            check.that(0 < self.test_share < 1, f"test_share must lie in (0, 1), not {self.test_share}")

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, and `label` where there are classes. Raises UserError where there are
        no shards, or they are damaged."""
        if not self.pattern:
            raise UserError("data: which shards? set data.source=array_record:PATTERN")
        if self.test:
            return held_if_small(self._open(self.test if name == "test" else self.pattern), self.shape)
        records = self._shared
        try:
            held = held_out(len(records), self.test_share)
        except UserError as error:
            raise UserError(f"data: {self.pattern}: {error}") from error
        return Subset(records, np.flatnonzero(held if name == "test" else ~held))

    @functools.cached_property
    def _shared(self) -> Records:
        """What both parts are taken of: read, and held in memory where it is small, once for the two."""
        return held_if_small(self._open(self.pattern), self.shape)

    def _open(self, pattern: str) -> OnDemand:
        from array_record.python.array_record_data_source import ArrayRecordDataSource  # of this source and tfds alone

        paths = _shards(pattern)
        folder = paths[0].parent
        if (folder / UNDERWAY).exists() and not (folder / MANIFEST).exists():
            raise UserError(f"data: {folder} is not finished: run scripts/prepare_dataset as before, which goes on")
        try:
            source = ArrayRecordDataSource([str(path) for path in paths])
            count = len(source)
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split()) or "a shard is cut short or damaged"
            raise UserError(f"data: {pattern} is no readable array_record: {reason}") from error
        if count == 0:
            raise UserError(f"data: {pattern} holds no records")
        settings = (self.classes, self.size, self.channels)
        if (folder / FEATURES).is_file():
            return examples(Deserialised(source, folder), f"{folder.name} {[path.name for path in paths]}", *settings)
        identity = self._identity(folder, paths, count, whole=Path(pattern).is_dir())
        return Prepared(source, pattern, identity, self.classes > 0, *settings)

    def _identity(self, folder: Path, paths: list[Path], count: int, *, whole: bool) -> str | None:
        """What the manifest says of the shards, once it is checked; None where there is none. whole: whether all of
        them must be there."""
        if not (folder / MANIFEST).is_file():
            return None
        manifest = Manifest.read(folder)
        shards = {shard.file: shard for shard in manifest.shards}
        unknown = [path.name for path in paths if path.name not in shards]
        if unknown:
            raise UserError(f"data: {folder / MANIFEST} does not name {unknown[0]}")
        missing = sorted(shards.keys() - {path.name for path in paths}) if whole else []
        if missing:
            raise UserError(f"data: {folder} lacks {some(missing)}, which {MANIFEST} names")
        told = sum(shards[path.name].records for path in paths)
        if told != count:
            raise UserError(f"data: {folder / MANIFEST} tells of {told} records; the shards hold {count}")
        numbers = [str(label) for label in range(len(manifest.classes or []))]
        if self.classes and manifest.classes and manifest.classes != numbers:  # numbers may be of more classes
            check_names(manifest.classes, self.classes, f"data: {folder}")
        if self.size > manifest.resolution:
            raise UserError(f"data: {folder} holds images of {manifest.resolution} pixels, fewer than {self.size}")
        return digest(*(shards[path.name].sha256 for path in paths))


def _shards(pattern: str) -> list[Path]:
    path = Path(pattern)
    found = [each for each in path.iterdir() if ".array_record" in each.name] if path.is_dir() else glob.glob(pattern)
    paths = sorted(each for each in map(Path, found) if each.is_file() and not each.name.startswith("."))
    if not paths:
        raise UserError(f"data: there is no array_record file at {pattern}; give a pattern of them, or their folder")
    if len({each.parent for each in paths}) > 1:
        raise UserError(f"data: the files at {pattern} lie in several folders; give those of one")
    return paths


@dataclasses.dataclass(frozen=True)
class Prepared(OnDemand):
    """Records as `image_records` says. identity: of the shards, None where no manifest names them."""

    source: Sequence[bytes]
    title: str
    identity: str | None
    labelled: bool
    classes: int
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the manifest's checksums and the settings; without a manifest of 1,000 records spread evenly."""
        numbers = [] if self.identity else sampled(len(self))
        settings = (self.identity, len(self), self.labelled, self.size, self.channels)
        return digest_of(("prepared", *settings, *(self.source[number] for number in numbers)))

    def image(self, number: int) -> tuple[Pixels, int]:
        """See `OnDemand`."""
        try:
            image, header = image_records.decode(self.source[number])
        except (ValueError, RuntimeError) as error:
            raise DamagedImage(f"it is damaged: {error}") from error
        return to_square(as_channels(image, self.channels), self.size), self._label(header["label"])

    def label(self, number: int) -> int:
        """See `OnDemand`."""
        try:
            return self._label(image_records.decode_header(self.source[number])["label"])
        except (ValueError, RuntimeError) as error:
            raise DamagedImage(f"it is damaged: {error}") from error

    def name(self, number: int) -> str:
        """See `OnDemand`."""
        return f"record {number} of {self.title}"

    def _label(self, label: int | None) -> int:
        if not self.labelled:
            return 0
        if label is None or not 0 <= label < self.classes:
            there = f"data.classes={self.classes} has 0 to {self.classes - 1}"
            raise DamagedImage(f"its label is {label}; {there}, and 0 leaves labels out")
        return label
