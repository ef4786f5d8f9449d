"""What is in a folder or a zip: files by their paths, and the label and caption that each is given.

Where both folders `train/` and `test/` are at the top, they are the two parts and nothing else is read. Labels stand at
the top or in the two parts, as the first of these that is there:

    dataset.json, labels.json   {"labels": [[file, class], …]}, as EDM and StyleGAN write them
    metadata.jsonl              lines {"file_name": …, "label": …, "text": …}, as Hugging Face's image folders have them
    the first folder            below the top, or below the part

A file is named from where the labels stand. A class is a number, or a name: names are numbered in their order.
"""

import dataclasses
import functools
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from score_sde.errors import UserError

PARTS = ("train/", "test/")
LABEL_FILES = ("dataset.json", "labels.json", "metadata.jsonl")
CAPTIONS = ("text", "caption")
NAMED = 5  # of many, in a message


class Files(Protocol):
    """Files by their paths below the top, with /. names: all, sorted. title: what the whole is called."""

    @property
    def title(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def size(self, name: str) -> int:
        """In bytes."""
        ...

    def read(self, name: str) -> bytes:
        """The content. Raises OSError, of which the message is a reason, where it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """A folder, listed once. Hidden files and folders are not of it."""

    root: Path
    names: tuple[str, ...]

    @staticmethod
    def of(root: Path) -> "FolderFiles":
        """Raises UserError where it cannot be listed."""
        found = []

        def refuse(error: OSError) -> None:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

        for folder, folders, files in os.walk(root, onerror=refuse):
            folders[:] = [each for each in folders if shown(each)]
            found += [(Path(folder) / each).relative_to(root).as_posix() for each in files if shown(each)]
        return FolderFiles(root, tuple(sorted(found)))

    @property
    def title(self) -> str:
        return str(self.root)

    def size(self, name: str) -> int:
        """See `Files`."""
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        """See `Files`."""
        path = self.root / name
        if path.exists() and not path.is_file():
            raise OSError("it is a pipe, a socket or a device, and no file")  # from which nothing may ever come
        return path.read_bytes()


@dataclasses.dataclass(frozen=True)
class ZipFiles:
    """A zip, read in place. Hidden files, and what macOS puts beside them, are not of it."""

    path: Path
    names: tuple[str, ...]

    @staticmethod
    def of(path: Path) -> "ZipFiles":
        """Raises UserError where it is damaged."""
        try:
            entries = _open_zip(path, os.getpid()).entries
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return ZipFiles(path, tuple(sorted(name for name in entries if all(map(shown, name.split("/"))))))

    @property
    def title(self) -> str:
        return str(self.path)

    def size(self, name: str) -> int:
        """See `Files`."""
        return _open_zip(self.path, os.getpid()).entries[name].file_size

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            opened = _open_zip(self.path, os.getpid())
            return opened.archive.read(opened.entries[name])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError) as error:
            raise OSError(f"it is damaged in the zip: {error}") from error


class _Zip(NamedTuple):
    """entries: of the files, by their paths."""

    archive: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]


@functools.lru_cache(maxsize=16)
def _open_zip(path: Path, process: int) -> _Zip:
    """One for each process: a file's position would be shared with those that are forked."""
    archive = zipfile.ZipFile(path)
    return _Zip(archive, {below_top(each.filename): each for each in archive.infolist() if not each.is_dir()})


def below_top(name: str) -> str:
    """A path as an archive has it, without the `.` that stand for the top and for nothing: `./a/b` is `a/b`."""
    return "/".join(part for part in name.split("/") if part != ".")


def shown(name: str) -> bool:
    """Whether a part of a path is neither hidden nor macOS's own."""
    return (not name.startswith(".") or name == "..") and name != "__MACOSX"


def open_files(path: Path) -> Files:
    """Those of a folder or a zip. Raises UserError where it is neither."""
    if path.is_dir():
        return FolderFiles.of(path)
    if not path.is_file():
        raise UserError(f"there is no {path}; give a folder or a zip of images")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a zip")
    return ZipFiles.of(path)


class Item(NamedTuple):
    """A file that is wanted, its class as it is written, and its caption; None where it has none."""

    name: str
    label: int | str | None
    caption: str | None


def ending_in(files: Files, suffixes: Sequence[str]) -> list[str]:
    """The names with one of these suffixes, in either case. Raises UserError where there is none."""
    found = [name for name in files.names if name.lower().endswith(tuple(suffixes))]
    if not found:
        raise UserError(f"there is no file in {files.title} that ends in {', '.join(suffixes)}")
    return found


def size_or_none(files: Files, name: str) -> int | None:
    """In bytes; None of a file that is gone, which is named when it is read."""
    try:
        return files.size(name)
    except OSError:
        return None


def list_items(files: Files, suffixes: Sequence[str]) -> list[Item]:
    """The files with these suffixes, by name. Raises UserError where there is none, or labels do not fit the files."""
    found = ending_in(files, suffixes)
    parts = _parts(found)
    names = [name for name in found if name.startswith(parts)] if parts else found
    written = _written(files, ("", *parts))
    if written is None:
        return [Item(name, _folder(name, parts), None) for name in names]
    where, labels = written
    absent = sorted(labels.keys() - set(found))
    if absent:
        raise UserError(f"{files.title}: {where} names {some(absent)}, not among the {len(found)} files that are there")
    return [labels.get(name, Item(name, None, None)) for name in names]


def numbered(items: Sequence[Item], title: str) -> tuple[Int[np.ndarray, "items"], list[str] | None]:
    """Each item's class as a number, and the classes' names where they have names.

    Raises UserError where an item has no class, or some are numbers and others names.
    """
    without = [item.name for item in items if item.label is None]
    if without:
        raise UserError(f"{title}: no class is given for {some(without)}")
    names = sorted({item.label for item in items if isinstance(item.label, str)})
    if not names:
        return np.asarray([item.label for item in items], np.int64), None
    mixed = [item.name for item in items if not isinstance(item.label, str)]
    if mixed:
        raise UserError(f"{title}: the class of {some(mixed)} is a number, those of others are names")
    number = {name: place for place, name in enumerate(names)}
    return np.asarray([number[str(item.label)] for item in items], np.int64), names


def split(items: Sequence[Item], share: float) -> dict[str, list[int]]:
    """The numbers of the items that are for training, and of those for testing: of the folders `train/` and `test/`,
    or else as `held_out` divides them."""
    parts = _parts([item.name for item in items])
    if parts:
        under = [[n for n, item in enumerate(items) if item.name.startswith(part)] for part in parts]
        return dict(zip(("train", "test"), under, strict=True))
    held = held_out(len(items), share)
    return {"train": np.flatnonzero(~held).tolist(), "test": np.flatnonzero(held).tolist()}


def held_out(count: int, share: float) -> np.ndarray:
    """Which of `count` records are for testing: round(share count) of them, the same at every call; at least one is on
    each side. Raises UserError for a single record."""
    if count < 2:
        raise UserError(f"{count} record cannot be divided into training and test; give at least 2, or a test part")
    place = np.argsort(np.random.Philox(key=np.zeros(2, np.uint64)).random_raw(count), kind="stable")
    return place < min(max(1, round(share * count)), count - 1)


# --- labels --------------------------------------------------------------------------------------------------------


def _parts(names: Sequence[str]) -> tuple[str, ...]:
    """`PARTS` where both are there; a folder train/ alone may be of pictures of trains."""
    return PARTS if all(any(name.startswith(part) for name in names) for part in PARTS) else ()


def _folder(name: str, parts: tuple[str, ...]) -> str | None:
    """The first one below the top, or below the part."""
    for part in parts:
        name = name.removeprefix(part)
    return name.partition("/")[0] if "/" in name else None


def _written(files: Files, bases: Sequence[str]) -> tuple[str, dict[str, Item]] | None:
    """The file that gives labels, or the files, and the items that they name; None where there is none. bases: the
    folders that they may stand in."""
    there = set(files.names)
    found = {base: [base + name for name in LABEL_FILES if base + name in there] for base in bases}
    several = next((names for names in found.values() if len(names) > 1), None)
    if several:
        raise UserError(f"{files.title} has {' and '.join(several)}; leave one of them")
    below = [name for base, names in found.items() if base for name in names]
    if found[""] and below:
        raise UserError(f"{files.title} has {found[''][0]} and {below[0]}; leave the one or the other")
    items: dict[str, Item] = {}
    for base, names in found.items():
        for name in names:
            read = _lines if name.endswith(".jsonl") else _pairs
            for item in read(files, name, base):
                if item.name in items:
                    raise UserError(f"{files.title}: {name} names {item.name} twice")
                items[item.name] = item
    where = " and ".join(name for names in found.values() for name in names)
    return (where, items) if where else None


def _pairs(files: Files, name: str, base: str) -> Iterator[Item]:
    """Of {"labels": [[file, class], …]} or {"labels": {file: class, …}}; none for {"labels": null}."""
    content = _json(files, name, _read(files, name))
    labels = content.get("labels") if isinstance(content, dict) else content
    pairs = list(labels.items()) if isinstance(labels, dict) else labels or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UserError(f'{files.title}: {name} must hold {{"labels": [[file, class], …]}}')
    for file, label in pairs:
        yield Item(_path(base, file), _label(files, name, file, label), None)


def _lines(files: Files, name: str, base: str) -> Iterator[Item]:
    """Of lines {"file_name": …, "label": …, "text": …}."""
    text = _read(files, name).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.split("\n"), 1):  # alone ends a line of JSON: captions may hold the others
        if not line.strip():
            continue
        entry = _json(files, f"line {number} of {name}", line)
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{files.title}: line {number} of {name} has no file_name")
        file, label = entry["file_name"], entry.get("label")
        caption = next((str(entry[key]) for key in CAPTIONS if entry.get(key) is not None), None)
        yield Item(_path(base, file), None if label is None else _label(files, name, file, label), caption)


def _read(files: Files, name: str) -> bytes:
    try:
        return files.read(name)
    except OSError as error:
        raise UserError(f"{files.title}: {name} cannot be read: {error.strerror or error}") from error


def _json(files: Files, where: str, text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{files.title}: {where} is no JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{files.title}: {where} is nested too deeply for JSON of labels") from error


def _path(base: str, file: object) -> str:
    return base + str(file).replace("\\", "/").removeprefix("./")


def _label(files: Files, name: str, file: object, label: object) -> int | str:
    if (
        isinstance(label, bool)
        or not isinstance(label, int | str)
        or (isinstance(label, int) and not 0 <= label < 2**31)
    ):
        raise UserError(
            f"{files.title}: {name} gives {file} the class {label!r}; it must be a number from 0, or a name"
        )
    return label


def some(names: Sequence[str]) -> str:
    """The first few, and how many there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
