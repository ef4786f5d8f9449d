"""Images in sharded array_record, as `scripts/prepare_dataset` writes them and the sources read them.

A folder holds shards `NAME-00000-of-00008.array_record` and `manifest.json`. A record is

    L, 4 bytes, little-endian    {"label": …, "caption": …, "name": …}, JSON in UTF-8, L bytes    a PNG file

with None where there is no label or caption; name is that of the file that it was made of.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from score_sde.errors import UserError

FORMAT = "score_sde images 1"
MANIFEST = "manifest.json"
UNDERWAY = ".preparation.json"  # the settings of a folder that is not finished
LENGTH = 4  # bytes of L
MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels


def encode(
    image: UInt8[np.ndarray, "height width channels"], *, label: int | None, caption: str | None, name: str
) -> bytes:
    """The record of an image. The same bytes for the same image, by one version of Pillow."""
    header = json.dumps({"label": label, "caption": caption, "name": name}).encode()
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
    return len(header).to_bytes(LENGTH, "little") + header + png.getvalue()


def decode_header(record: bytes) -> dict[str, Any]:
    """`label`, `caption` and `name`. Raises ValueError where the record is damaged."""
    try:
        header = json.loads(record[LENGTH : LENGTH + _header_length(record)])
    except ValueError as error:
        raise ValueError(f"a record's header is damaged: {error}") from error
    if not isinstance(header, dict) or not {"label", "caption", "name"} <= header.keys():
        raise ValueError(f"a record's header must name label, caption and name, not {header!r:.80}")
    return header


def decode(record: bytes) -> tuple[UInt8[np.ndarray, "height width channels"], dict[str, Any]]:
    """The image and its header. Raises ValueError where the record is damaged."""
    header = decode_header(record)
    try:
        with Image.open(io.BytesIO(record[LENGTH + _header_length(record) :]), formats=("PNG",)) as png:
            image = np.asarray(png)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for damaged files
        raise ValueError(f"the image of {header['name']!r} is damaged: {error}") from error
    return (image[..., None] if image.ndim == 2 else image), header


def _header_length(record: bytes) -> int:
    length = int.from_bytes(record[:LENGTH], "little")
    if len(record) < LENGTH + length or length == 0:
        raise ValueError(f"a record of {len(record)} bytes cannot hold a header of {length}")
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file, how many records it holds, and its checksum."""

    file: str
    records: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds.

    classes: their names, by label; None where there are no labels. histogram: records of each class. mean, deviation:
    of each channel over all pixels of all records, of values in [0, 1]. skipped: the files that no record could be made
    of, as {"name", "reason"}. fingerprint: of the shards' checksums. settings: what it was made of and how.
    enlarged: how many images had fewer pixels.
    """

    resolution: int
    channels: int
    records: int
    classes: list[str] | None
    shards: list[Shard]
    histogram: list[int]
    mean: list[float]
    deviation: list[float]
    skipped: list[dict[str, str]]
    fingerprint: str
    settings: dict[str, Any]
    enlarged: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        values = dataclasses.asdict(self)
        values["classes"] = None if self.classes is None else {"names": self.classes}
        return {"format": FORMAT, **values}

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """That of a prepared folder. Raises UserError where there is none, or it is damaged."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"data: there is no {path}; scripts/prepare_dataset makes such folders") from error
        except (OSError, ValueError) as error:
            raise UserError(f"data: {path} cannot be read: {error}") from error
        kind = values.pop("format", None) if isinstance(values, dict) else None
        if kind != FORMAT:
            raise UserError(f"data: {path} is of format {kind!r}, not {FORMAT!r}")
        try:
            classes = None if values["classes"] is None else list(values["classes"]["names"])
            shards = [Shard(**shard) for shard in values["shards"]]
            manifest = cls(**{**values, "classes": classes, "shards": shards})
            for number in (manifest.resolution, manifest.channels, manifest.records, *(s.records for s in shards)):
                if not isinstance(number, int):
                    raise TypeError(f"{number!r} is no whole number")
        except (KeyError, TypeError) as error:
            raise UserError(f"data: {path} lacks what a manifest has, or has more: {error}") from error
        if fingerprint(shards) != manifest.fingerprint or sum(shard.records for shard in shards) != manifest.records:
            raise UserError(f"data: {path} contradicts itself: its shards are not those of its fingerprint")
        return manifest

    def check(self, folder: Path) -> None:
        """Raises UserError where a shard is missing or has changed; reads all of them."""
        for shard in self.shards:
            path = folder / shard.file
            if not path.is_file():
                raise UserError(f"data: {path} is missing, which {MANIFEST} names")
            if checksum(path) != shard.sha256:
                raise UserError(f"data: {path} is not as {MANIFEST} says: its checksum is another")


def fingerprint(shards: Sequence[Shard]) -> str:
    """SHA-256 of the shards' own, in their order: names the records of a folder."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
