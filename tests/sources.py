"""Small real files of every kind, written by the formats' own descriptions, and what is asked of a source of them."""

import io
import json
import wave
import zipfile

import numpy as np
import pytest
from PIL import Image

from score_sde.data import whole
from score_sde.errors import UserError

RANDOM = np.random.default_rng(0)


def pictures(count, height=8, width=8):
    return RANDOM.integers(256, size=(count, height, width, 3), dtype=np.uint8)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def write(root, files):
    """files: content, an image or what JSON holds, by path."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_it = {np.ndarray: png, bytes: bytes}.get(type(content), lambda value: json.dumps(value).encode())
        path.write_bytes(encode_it(content))
    return root


def zipped(root, path):
    """The files below root as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(root.rglob("*")):
            if each.is_file():
                archive.write(each, each.relative_to(root).as_posix())
    return path


def both(source):
    """The images and labels of both parts, as sorted rows."""
    rows = []
    for name in ("train", "test"):
        records = source.split(name)
        labels = whole(records, "label") if source.classes else np.zeros(len(records))
        rows += [(image.tobytes(), int(y)) for image, y in zip(whole(records, "image"), labels, strict=True)]
    return sorted(rows)


def refused(source, *words, name="train"):
    with pytest.raises(UserError) as error:
        source.split(name)
    text = str(error.value)
    assert "\n" not in text
    assert text.count("data: ") == 1
    assert text.startswith("data: ")
    for word in words:
        assert word in text, text


def wav(path, values, rate=8000, width=2):
    """values: (time, channels), as the file stores them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((values.shape[1], width, rate, len(values), "NONE", ""))
        raw = values.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width]
        file.writeframes(raw.tobytes())
