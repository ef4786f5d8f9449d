"""Sounds in WAV files, in a folder with any folders in it: `data.source=wav:FOLDER`.

Each file is cut into segments of `length` samples, which are the records: one after another from its beginning, and the
last one aligned to its end, so that nothing is left out. A shorter file is followed by silence. Linear PCM of 8, 16, 24
and 32 bits is read; it becomes 65,536 levels: v of 8 bits 256 v, of more than 16 bits by rounding. Labels, and which
files are for testing, `listing` says; segments of one file are in one part.
"""

import dataclasses
import functools
import os
import struct
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt16

from score_sde.data.decoding import DamagedImage
from score_sde.data.folder import checked
from score_sde.data.listing import FolderFiles, list_items, numbered, split
from score_sde.data.on_demand import NAMED, OnDemand, held_if_small, sampled
from score_sde.data.source import Records, digest_of
from score_sde.errors import Checks, UserError

SUFFIXES = (".wav", ".wave")
SILENCE = 2**15  # its level
PCM, EXTENSIBLE = 1, 0xFFFE
SUBFORMAT = bytes.fromhex("000000001000800000aa00389b71")  # of the GUID that begins with the plain format's number
FORMATS = {2: "ADPCM", 3: "floats", 6: "A-law", 7: "mu-law"}  # of those that are not read
UNKNOWN = 0x7FFF0000  # bytes; from here on, lengths are those of writers into a pipe, which cannot know: up to the end
NO_WAV = "it is no WAV file of linear PCM"

Sound = UInt16[np.ndarray, "time channels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WAV:
    """folder: of the files. length: of a record, in samples. rate: samples a second that the files must have; channels:
    1 or 2, as well. test_share: of the files, for testing where there is no `test/`. classes: 0 to leave labels out."""

    ARGUMENT = "folder"

    folder: str = ""
    length: int = 16384
    rate: int = 16000
    channels: int = 1
    classes: int = 0
    test_share: float = 0.1
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.length >= 1, f"length must be at least 1, not {self.length}")
            check.that(self.rate >= 1, f"rate must be at least 1, not {self.rate}")
            check.that(self.channels in (1, 2), f"channels must be 1 or 2, not {self.channels}")
            check.that(self.classes >= 0, f"classes must be at least 0, not {self.classes}")
            check.that(0 < self.test_share < 1, f"test_share must lie in (0, 1), not {self.test_share}")
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, self.channels)

    @property
    def levels(self) -> int:
        return 2**16

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`, (time, channels), and `label` where there are classes.

        Raises UserError that names the files which cannot be used."""
        if not self.folder:
            raise UserError("data: which folder of WAV files? set data.source=wav:FOLDER")
        root = Path(self.folder)
        try:
            if not root.is_dir():
                raise UserError(f"{root} is no folder")
            files = FolderFiles.of(root)
            items = list_items(files, SUFFIXES)
            labels = checked(*numbered(items, files.title), items, self.classes, files.title) if self.classes else None
            numbers = split(items, self.test_share)[name]
        except UserError as error:
            raise UserError(f"data: {error}") from error
        paths = [root / items[number].name for number in numbers]
        starts = [(place, start) for place, count in enumerate(self._lengths(paths)) for start in self._starts(count)]
        file, start = (np.asarray(each, np.int64) for each in zip(*starts, strict=True))
        own = None if labels is None else labels[numbers][file]
        names = tuple(items[number].name for number in numbers)
        return held_if_small(Segments(root, names, file, start, own, self.length, self.channels), self.shape)

    def _starts(self, count: int) -> list[int]:
        """Of the segments of a file of so many samples."""
        whole = list(range(0, count - self.length + 1, self.length))
        rest = [max(0, count - self.length)] if count % self.length or not whole else []
        return whole + rest

    def _lengths(self, paths: list[Path]) -> list[int]:
        """Of the files, in samples."""
        lengths, wrong = [], []
        for path in paths:
            try:
                lengths.append(_length(path, self.rate, self.channels))
            except DamagedImage as error:
                wrong.append(f"{path}: {error}")
        if wrong:
            more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise UserError(f"data: {len(wrong)} files cannot be used: {'; '.join(wrong[:NAMED])}{more}")
        return lengths


@dataclasses.dataclass(frozen=True)
class Segments(OnDemand):
    """Stretches of files. file, start: of each record; labels: None where there are none."""

    root: Path
    names: tuple[str, ...]
    file: Int[np.ndarray, "records"]
    start: Int[np.ndarray, "records"]
    labels: Int[np.ndarray, "records"] | None
    length: int
    channels: int

    dtype = np.dtype(np.uint16)

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.file)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names, what is taken of each, the labels, and 1,000 records spread evenly."""

        def parts():
            yield from ("segments", self.length, self.channels, *self.names)
            for number in range(len(self)):
                yield from (self.file[number], self.start[number], self.label(number))
            for number in sampled(len(self)):
                yield self.image(number)[0].tobytes()

        return digest_of(parts())

    def image(self, number: int) -> tuple[Sound, int]:
        """See `OnDemand`."""
        sound = _read(self.root / self.names[self.file[number]], int(self.start[number]), self.length)
        silence = np.full((self.length - len(sound), self.channels), SILENCE, np.uint16)
        return np.concatenate([sound, silence]), self.label(number)

    def label(self, number: int) -> int:
        """See `OnDemand`."""
        return 0 if self.labels is None else int(self.labels[number])

    def name(self, number: int) -> str:
        """See `OnDemand`."""
        return f"{self.root / self.names[self.file[number]]} from sample {self.start[number]}"


def _length(path: Path, rate: int, channels: int) -> int:
    """A file's, in samples. Raises DamagedImage unless it is whole, of this rate and these channels."""
    layout = _layout(path)
    if layout.rate != rate:
        raise DamagedImage(f"it has {layout.rate} samples a second, data.rate={rate}: resample it, or set it")
    if layout.channels != channels:
        raise DamagedImage(f"it has {layout.channels} channels, data.channels={channels}")
    if layout.samples == 0:
        raise DamagedImage("it is empty")
    return layout.samples


def _read(path: Path, start: int, length: int) -> Sound:
    """The levels of a stretch, shorter where the file ends."""
    _, channels, width, begin, samples = _layout(path)
    wanted = min(length, samples - start) * width * channels
    with path.open("rb") as file:
        file.seek(begin + start * width * channels)
        content = file.read(max(wanted, 0))
    if len(content) != wanted:
        raise DamagedImage(f"it is cut short after sample {start}")
    return to_levels(content, width).reshape(-1, channels)


def to_levels(content: bytes, width: int) -> UInt16[np.ndarray, "values"]:
    """PCM of `width` bytes a value as 65,536 levels, 32,768 for silence."""
    if width == 1:  # without a sign, 128 for silence
        return np.frombuffer(content, np.uint8).astype(np.uint16) * np.uint16(256)
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    padded = np.zeros((len(rows), 4), np.uint8)
    padded[:, 4 - width :] = rows  # the upper bytes of 32 bits
    values = padded.view("<i4")[:, 0].astype(np.float64)
    return np.minimum(np.rint(values / 2**16) + SILENCE, 2**16 - 1).astype(np.uint16)


# --- the file ------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Samples a second, channels, bytes of a value, the place of the first one, and the number of samples."""

    rate: int
    channels: int
    width: int
    begin: int
    samples: int


def _layout(path: Path) -> Layout:
    """That of a file. What RIFF says of the whole length is not looked at: files that went through a pipe lack it.

    Raises DamagedImage unless it is of linear PCM, plain or WAVE_FORMAT_EXTENSIBLE, and whole.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            form, (begin, length) = _chunks(file, end)
    except OSError as error:
        raise DamagedImage(f"it cannot be read: {error.strerror}") from error
    tag, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", form[:16])
    if tag == EXTENSIBLE and form[26:40] == SUBFORMAT:
        tag = int.from_bytes(form[24:26], "little")
    width = -(-bits // 8)
    if tag != PCM:
        raise DamagedImage(f"{NO_WAV}: its format is {FORMATS.get(tag, f'number {tag}')}")
    if not 1 <= width <= 4:
        raise DamagedImage(f"it has {bits} bits a sample, not 8, 16, 24 or 32")
    if channels == 0 or frame != channels * width:
        raise DamagedImage(f"it has {frame} bytes for a sample of {channels} channels of {bits} bits")
    if length >= UNKNOWN:
        length = min(length, end - begin)
    if length > end - begin:
        raise DamagedImage(f"it is cut short: it says that it has {length // frame} samples")
    return Layout(rate, channels, width, begin, length // frame)


def _chunks(file: IO[bytes], end: int) -> tuple[bytes, tuple[int, int]]:
    """What stands in the chunk of the format; where that of the data begins, and what it says of its length."""
    file.seek(0)
    head = file.read(12)
    if head[:4] + head[8:] != b"RIFFWAVE":
        raise DamagedImage(f"{NO_WAV}: it {'does not begin as one' if head else 'has no bytes'}")
    form, place = b"", len(head)
    while place + 8 <= end:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"fmt ":
            form = file.read(min(length, 40))
        if name == b"data":
            if len(form) < 16:
                raise DamagedImage(f"{NO_WAV}: nothing before its data says what they are")
            return form, (place + 8, length)
        place += 8 + length + length % 2
    raise DamagedImage(f"{NO_WAV}: it ends before its data")
