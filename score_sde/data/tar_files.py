"""The files of a tar, read in place as `listing.Files`. Nothing is unpacked, so that it matters not what paths say."""

import dataclasses
import functools
import lzma
import tarfile
import zlib
from pathlib import Path

from score_sde.data.listing import below_top, shown
from score_sde.errors import UserError


@dataclasses.dataclass(frozen=True)
class TarFiles:
    """An uncompressed tar, listed once; of files of the same name the last counts, as tar itself has it.

    places: where each file's bytes begin and how many there are, None for a link or a device.
    """

    path: Path
    places: dict[str, tuple[int, int] | None]

    @staticmethod
    def of(path: Path) -> "TarFiles":
        """Raises UserError where it is damaged or compressed: a compressed one must be read from its start."""
        try:
            with tarfile.open(path, "r:") as tar:
                members = [member for member in tar if not member.isdir()]
                end = tar.offset
        except (tarfile.TarError, OSError, EOFError) as error:
            if path.is_file() and _compressed(path):
                raise UserError(f"{path} is compressed; decompress it first (gunzip, bunzip2 or unxz)") from error
            raise UserError(f"{path} cannot be read: {error}") from error
        plain = lambda member: member.isreg() and not member.issparse()
        places = {below_top(each.name): (each.offset_data, each.size) if plain(each) else None for each in members}
        visible = {name: place for name, place in places.items() if all(map(shown, name.split("/")))}
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word, too
                raise UserError(f"{path} is cut short or damaged: it does not end where its files do, at byte {end}")
        return TarFiles(path, visible)

    @property
    def title(self) -> str:
        return str(self.path)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.places))

    def size(self, name: str) -> int:
        """See `Files`."""
        return (self.places[name] or (0, 0))[1]

    def read(self, name: str) -> bytes:
        """See `Files`."""
        place = self.places[name]
        if place is None:
            raise OSError("it is a link in the tar, and no file")
        start, size = place
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) != size:
            raise OSError("the tar is cut short in it")
        return content


def is_tar(path: Path) -> bool:
    """Whether a file is a tar by its content, compressed or not; also where it is compressed and cut short."""
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, zlib.error, lzma.LZMAError):
        return _compressed(path)


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
