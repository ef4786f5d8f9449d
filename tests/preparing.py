"""Sets of images that `scripts/prepare_dataset` is given, and what it makes of them."""

import io
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from score_sde.data.image_records import Manifest, decode
from score_sde.data.preparation import Preparation, Settings


def prepared(source: Path, output: Path, resolution: int = 4, **settings) -> Manifest:
    preparation = Preparation(Settings(source=source, output=output, resolution=resolution, **settings))
    list(preparation.run())
    assert preparation.manifest is not None
    assert Manifest.read(output) == preparation.manifest
    return preparation.manifest


def records(folder: Path):
    """Images and headers, in the order of the shards."""
    manifest = Manifest.read(folder)
    source = ArrayRecordDataSource([str(folder / shard.file) for shard in manifest.shards])
    assert len(source) == manifest.records
    return [decode(source[number]) for number in range(len(source))]


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def noise(seed: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder: Path, **contents: bytes) -> Path:
    """Files by their paths."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
