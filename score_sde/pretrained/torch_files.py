"""Files that `torch.save` wrote, in both layouts, without PyTorch.

zip       an archive of NAME/data.pkl and NAME/data/KEY, one member a storage (since PyTorch 1.6)
legacy    pickles one after another: a magic number, a version, the writer's sizes, the object, the storages' keys;
          then of each storage the number of its elements, 8 bytes, and the elements
"""

import functools
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.errors import UserError
from score_sde.pretrained.pickles import Storage, plain, read_pickle, reading

MAGIC = 0x1950A86A20F9469CFC6C


def read_checkpoint(path: Path) -> Any:
    """The object in a `.pth` or `.pt` file, or in a pickle such as NVIDIA's `.pkl`; tensors as NumPy arrays.

    Raises UserError with one line where there is no such file, or it is damaged or asks for more than data.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")

    def read() -> Any:
        with path.open("rb") as stream:
            return plain(read_torch(stream))

    return reading(path, read)


def read_torch(stream: Any) -> Any:
    """The object in an open file of either layout, or the one of a plain pickle, which may hold files as bytes."""

    @functools.cache
    def within(data: bytes) -> Any:
        return _read(io.BytesIO(data), None)

    return _read(stream, within)


def _read(stream: Any, within: Callable[[bytes], Any] | None) -> Any:
    start = stream.read(4)
    stream.seek(0)
    if start == b"PK\x03\x04":
        return _read_zip(stream)
    first = read_pickle(stream, within=within)
    if not isinstance(first, int) or isinstance(first, bool) or first != MAGIC:
        return first
    return _read_legacy(stream)


def _read_zip(stream: Any) -> Any:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        found = [name for name in names if name.endswith("data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise ValueError("an archive without data.pkl")
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise ValueError("a compressed archive, which torch.save does not write")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder").strip() != b"little":
            raise ValueError("of another byte order than little")

        @functools.cache
        def storage(dtype: np.dtype, key: str) -> Storage:
            return Storage(np.frombuffer(archive.read(f"{folder}data/{key}"), dtype))

        return read_pickle(io.BytesIO(archive.read(found[0])), storage)


def _read_legacy(stream: Any) -> Any:
    read_pickle(stream)  # the protocol's version
    read_pickle(stream)  # sizes of the writer's integers
    start = stream.tell()
    # The elements stand after the object, so it is read twice: for what storages it has, and then with them.
    kinds: dict[str, np.dtype] = {}

    def note(dtype: np.dtype, key: str) -> Storage:
        kinds[key] = dtype
        return Storage(None)

    read_pickle(stream, note)
    storages = {}
    for key in read_pickle(stream):
        count, place = struct.unpack("<q", stream.read(8))[0], stream.tell()
        size = count * kinds[key].itemsize
        if not 0 <= size <= stream.seek(0, io.SEEK_END) - place:
            raise EOFError("the file ends within a storage")
        stream.seek(place)
        storages[key] = Storage(np.frombuffer(stream.read(size), kinds[key]))
    stream.seek(start)
    return read_pickle(stream, lambda dtype, key: storages[key])
