"""From image files of any kind to sharded array_record at one resolution, as `image_records` describes it.

The files of a folder, zip or tar, sorted by name, are divided into shards of neighbours: of N files, shard s of S has
those from ⌊s N/S⌋ on, up to the next's. Workers read, decode and encode some files at a time; this process writes what
they made, in order. So a shard depends on its files alone, and not on how many processes there are.

A shard is written under a temporary name and renamed; a note beside it says what is in it, until all of them are made,
the manifest is written and the notes are removed. What a killed run leaves is, for each shard, all or nothing.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from score_sde.data.decoding import CHANNELS, RESAMPLINGS, SUFFIXES, DamagedImage, decode_image, to_square
from score_sde.data.image_records import MANIFEST, UNDERWAY, Manifest, Shard, checksum, encode, fingerprint
from score_sde.data.listing import (
    LABEL_FILES,
    PARTS,
    Files,
    Item,
    list_items,
    numbered,
    open_files,
    size_or_none,
    split,
)
from score_sde.data.tar_files import TarFiles, is_tar
from score_sde.data.workers import Workers
from score_sde.errors import Checks, RunFailed, UserError, room_for

AT_A_TIME = 32  # files that a worker is given
OF_A_SHARD, FEWEST_SHARDS = 8192, 8
MOST_BYTES = 2**28  # of a file
MOST_CLASSES = 2**20
NAMED = 5  # files, in a message
WRITER = "group_size:1,uncompressed"  # each record read alone; PNG is compressed already


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for. part: "train" or "test" where the source has both. max_damaged: the share of files."""

    source: Path
    output: Path
    resolution: int
    channels: int = 3
    resampling: str = "area"
    labels: bool = True
    part: str = ""
    shards: int = 0
    name: str = "images"
    processes: int = 1
    max_damaged: float = 0.01

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.resolution <= 4096, f"--resolution must lie in [1, 4096], not {self.resolution}")
            check.that(self.channels in CHANNELS, f"--channels must be 1 or 3, not {self.channels}")
            check.name("--resampling", self.resampling, RESAMPLINGS)
            check.that(self.part in ("", "train", "test"), f"--part must be train or test, not {self.part!r}")
            check.that(0 <= self.shards <= 99999, f"--shards must lie in [1, 99999], not {self.shards}")
            fits = re.fullmatch(r"\w[\w.+-]*", self.name) is not None
            check.that(fits, f"--name must be of letters, digits, _, ., + and -, not {self.name!r}")
            check.that(1 <= self.processes <= 256, f"--processes must lie in [1, 256], not {self.processes}")
            check.that(0 <= self.max_damaged <= 1, f"--max-damaged must lie in [0, 1], not {self.max_damaged}")


@dataclasses.dataclass
class Note:
    """What is in a shard, or in a part of one. histogram: records by label. sums, squares: of the 8-bit values of each
    channel. enlarged: images that had fewer pixels. skipped: files that no record could be made of, and why."""

    records: int = 0
    sha256: str = ""
    histogram: dict[int, int] = dataclasses.field(default_factory=dict)
    sums: list[int] = dataclasses.field(default_factory=list)
    squares: list[int] = dataclasses.field(default_factory=list)
    enlarged: int = 0
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, other: "Note") -> None:
        """Joins what is in another part."""
        self.records, self.enlarged = self.records + other.records, self.enlarged + other.enlarged
        for label, count in other.histogram.items():
            self.histogram[label] = self.histogram.get(label, 0) + count
        width = max(len(self.sums), len(other.sums))
        both = lambda one, two: [sum(each) for each in zip(one or [0] * width, two or [0] * width, strict=True)]
        self.sums, self.squares = both(self.sums, other.sums), both(self.squares, other.squares)
        self.skipped += other.skipped


class Advance(NamedTuple):
    """How many files more are done, and which of them are damaged: {"name", "reason"}."""

    files: int
    skipped: list[dict[str, str]]


class Preparation:
    """A source listed, and the folder compared with what is asked for; nothing is written yet.

    others: files of the source that are not read. manifest: once all is done. Raises UserError where the source has no
    images, or labels do not fit, or the folder holds something else.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self._folder = settings, settings.output
        self.files = _open(settings.source)
        everything = list_items(self.files, SUFFIXES)
        known = {item.name for item in everything}
        known |= {base + name for base in ("", *PARTS) for name in LABEL_FILES}
        self.others = [name for name in self.files.names if name not in known]
        self._items, self._classes = _chosen(everything, self.files.title, labels=settings.labels, part=settings.part)
        count = len(self._items)
        default = max(min(FEWEST_SHARDS, count), -(-count // OF_A_SHARD))
        self._shards = min(settings.shards or default, count)
        self._settings = {
            **{key: getattr(settings, key) for key in ("resolution", "channels", "resampling", "name")},
            "shards": self._shards,
            "files": count,
            "listing": _digest(self.files, self._items),
        }
        self.manifest = self._found()

    @property
    def total(self) -> int:
        """Files."""
        return len(self._items)

    def finished(self) -> int:
        """Files whose shards an earlier run has finished. Checks these."""
        return sum(len(self._range(shard)) for shard in range(self._shards) if self._note(shard))

    def run(self) -> Iterator[Advance]:
        """Makes what is missing; `manifest` is there after the last. Raises RunFailed where too many are damaged."""
        from score_sde.data.pipeline import in_order  # imports jax, which workers do not need

        with contextlib.closing(self._begin()):
            notes = {shard: note for shard in range(self._shards) if (note := self._note(shard))}
            missing = [shard for shard in range(self._shards) if shard not in notes]
            tasks = [(shard, part) for shard in missing for part in _parts(self._range(shard))]
            total = Note()
            for note in notes.values():
                total.add(note)
            yield Advance(0, list(total.skipped))  # named again, of the shards that are there
            self._check_damaged(total.skipped)
            convert = functools.partial(_convert, _without_names(self.files), self.settings)
            with contextlib.closing(Workers(min(self.settings.processes, len(tasks)), convert)) as workers:
                items = lambda number: workers([self._items[each] for each in tasks[number][1]])
                made = in_order(items, len(tasks), self.settings.processes)
                for shard in missing:
                    note = notes[shard] = Note()
                    with self._writing(shard, note) as write:
                        for _ in _parts(self._range(shard)):
                            records, part = next(made)
                            for record in records:
                                write(record)
                            note.add(part)
                            total.add(part)
                            yield Advance(part.records + len(part.skipped), part.skipped)
                            self._check_damaged(total.skipped)
            self._finish([notes[shard] for shard in range(self._shards)], total)

    def _found(self) -> Manifest | None:
        """The manifest of a finished folder. Raises UserError where it holds something else."""
        folder, wanted = self._folder, self._settings
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is in the way: it is no folder")
        if (folder / MANIFEST).exists():
            manifest = Manifest.read(folder)
            _compare(folder, manifest.settings, wanted)
            manifest.check(folder)
            return manifest
        if (folder / UNDERWAY).exists():
            _compare(folder, _read_json(folder / UNDERWAY, {}), wanted)
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty, and nothing that was begun here; give a folder of its own")
        return None

    def _begin(self) -> IO[str]:
        """A lock on the folder, which two runs cannot have."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (self._folder / UNDERWAY).exists():
                _write_json(self._folder / UNDERWAY, self._settings)
            lock = (self._folder / UNDERWAY).open()
        except OSError as error:
            raise UserError(f"{self._folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(f"{self._folder} is being prepared by another run") from error
        return lock

    def _range(self, shard: int) -> range:
        """The numbers of a shard's files."""
        return range(shard * self.total // self._shards, (shard + 1) * self.total // self._shards)

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self.settings.name}-{shard:05d}-of-{self._shards:05d}.array_record"

    def _note(self, shard: int) -> Note | None:
        """That of a shard which an earlier run has finished and nothing has changed since."""
        path, note = self._path(shard), _beside(self._path(shard))
        if not (path.is_file() and note.is_file()):
            return None
        values = _read_json(note, dataclasses.asdict(Note()))
        values["histogram"] = {int(label): count for label, count in values["histogram"].items()}
        return Note(**values) if checksum(path) == values["sha256"] else None

    @contextlib.contextmanager
    def _writing(self, shard: int, note: Note) -> Iterator[Any]:
        """What writes a record to the shard; after the block the shard is there, and its note beside it."""
        from array_record.python.array_record_module import ArrayRecordWriter

        path = self._path(shard)
        temporary = path.with_name(f".{path.name}.partial")
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER)
            try:
                yield writer.write
            finally:
                writer.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            note.sha256 = checksum(temporary)
            os.replace(temporary, path)
            _write_json(_beside(path), dataclasses.asdict(note))
        except (OSError, RuntimeError) as error:
            raise RunFailed(f"{path} cannot be written: {error}") from error

    def _check_damaged(self, skipped: Sequence[dict[str, str]]) -> None:
        """Raises RunFailed where there are too many."""
        if len(skipped) > self.settings.max_damaged * self.total:
            named = "; ".join(f"{each['name']}: {each['reason']}" for each in skipped[:NAMED])
            more = f"; and {len(skipped) - NAMED} more, named above" if len(skipped) > NAMED else ""
            allowed = f"{self.settings.max_damaged:g} of all {self.total}, which --max-damaged allows"
            raise RunFailed(f"{len(skipped)} files are damaged, more than {allowed}: {named}{more}")

    def _finish(self, notes: Sequence[Note], total: Note) -> None:
        """Writes the manifest and removes the notes."""
        if total.records == 0:
            raise RunFailed(f"all {self.total} files of {self.files.title} are damaged")
        shards = [
            Shard(file=self._path(number).name, records=note.records, sha256=note.sha256)
            for number, note in enumerate(notes)
        ]
        values, scale = total.records * self.settings.resolution**2, 255
        means = [each / (values * scale) for each in total.sums]
        # The variance's numerator is exact, in integers: no difference of near-equal numbers is rounded.
        exact = [values * square - each**2 for each, square in zip(total.sums, total.squares, strict=True)]
        self.manifest = Manifest(
            resolution=self.settings.resolution,
            channels=self.settings.channels,
            records=total.records,
            classes=self._classes,
            shards=shards,
            histogram=[total.histogram.get(label, 0) for label in range(len(self._classes or []))],
            mean=means,
            deviation=[each**0.5 / (values * scale) for each in exact],
            skipped=[each for note in notes for each in note.skipped],
            enlarged=total.enlarged,
            fingerprint=fingerprint(shards),
            settings=self._settings,
        )
        with room_for(self._folder / MANIFEST):
            _write_json(self._folder / MANIFEST, self.manifest.plain())
        for number in range(self._shards):
            _beside(self._path(number)).unlink(missing_ok=True)
        for partial in self._folder.glob(".*.partial"):
            partial.unlink()
        (self._folder / UNDERWAY).unlink()


# --- the source ----------------------------------------------------------------------------------------------------


def _open(source: Path) -> Files:
    called = ".tar" in source.suffixes and not zipfile.is_zipfile(source)  # a damaged one is told of as a tar, too
    tar = source.is_file() and (called or is_tar(source))
    return TarFiles.of(source) if tar else open_files(source)


def _without_names(files: Files) -> Files:
    """What reads the same files by their names: the list of them all is not sent to each worker."""
    return files if isinstance(files, TarFiles) else dataclasses.replace(files, names=())  # type: ignore[type-var]


def _chosen(items: Sequence[Item], title: str, *, labels: bool, part: str) -> tuple[Sequence[Item], list[str] | None]:
    """The images, their labels as numbers, and the names of the classes, which are those of both parts."""
    names = None
    if labels and any(item.label is not None for item in items):
        numbers, names = numbered(items, title)
        if max(numbers) >= MOST_CLASSES:
            raise UserError(f"{title} has the label {max(numbers)}; up to {MOST_CLASSES - 1} are read")
        names = names or [str(label) for label in range(max(numbers) + 1)]
        items = [item._replace(label=int(label)) for item, label in zip(items, numbers, strict=True)]
    else:
        items = [item._replace(label=None) for item in items]
    has_parts = all(any(item.name.startswith(each) for item in items) for each in PARTS)
    if has_parts and not part:
        raise UserError(f"{title} has the folders train/ and test/: choose one by --part=train or --part=test")
    if part and not has_parts:
        raise UserError(f"{title} has no folders train/ and test/ for --part={part} to choose from")
    return ([items[number] for number in split(items, 0.0)[part]] if part else items), names


def _digest(files: Files, items: Sequence[Item]) -> str:
    """Of the names, sizes, labels and captions."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([*item, size_or_none(files, item.name)]).encode())
    return digest.hexdigest()


def _parts(numbers: range) -> list[range]:
    return [numbers[start : start + AT_A_TIME] for start in range(0, len(numbers), AT_A_TIME)]


def _convert(files: Files, settings: Settings, items: Sequence[Item]) -> tuple[list[bytes], Note]:
    """Records of the files, and what is in them. What a worker does."""
    records, note = [], Note()
    for name, label, caption in items:
        try:
            image = _image(files, name, settings.channels)
        except (DamagedImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            note.skipped.append({"name": name, "reason": reason})
            continue
        square = to_square(image, settings.resolution, settings.resampling)
        assert label is None or isinstance(label, int)
        records.append(encode(square, label=label, caption=caption, name=name))
        values = square.astype(np.int64)
        sums, squares = (each.sum(axis=(0, 1)).tolist() for each in (values, values**2))
        small = min(image.shape[:2]) < settings.resolution
        histogram = {} if label is None else {label: 1}
        note.add(Note(records=1, histogram=histogram, sums=sums, squares=squares, enlarged=int(small)))
    return records, note


def _image(files: Files, name: str, channels: int) -> Any:
    if files.size(name) > MOST_BYTES:
        raise DamagedImage(f"it has {files.size(name)} bytes, more than the {MOST_BYTES} that are read")
    return decode_image(files.read(name), channels)


# --- the folder ----------------------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    """The note of a shard."""
    return path.with_name(f".{path.name}.json")


def _compare(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError that names what differs."""
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if different == ["listing"]:
        raise UserError(f"{folder} was made of other files, or they have changed since; give another folder")
    if different:
        named = ", ".join(
            f"{key} is {there.get(key, 'absent')} there and {wanted[key]} here" for key in different if key != "listing"
        )
        raise UserError(f"{folder} is of other settings or another source: {named}; give another folder")


def _read_json(path: Path, like: dict[str, Any]) -> dict[str, Any]:
    """What `like` has, with values of the same types."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or any(type(values.get(key)) is not type(like[key]) for key in like):
            raise ValueError("it is not as it was written")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; remove the folder and begin anew") from error
    return values


def _write_json(path: Path, values: Any) -> None:
    """A kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
