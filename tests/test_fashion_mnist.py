"""Fashion-MNIST's files: read as they are, and refused in one line where they are not."""

import gzip
import struct

import numpy as np
import pytest

from score_sde.data import SOURCES
from score_sde.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
IMAGE = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
LABEL = np.array([9, 0, 3, 3, 1], np.uint8)


def idx(array, magic=None):
    """The array as IDX, written by the format's own description."""
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    files = {IMAGES: IMAGE, LABELS: LABEL}
    files |= {name.replace("train", "t10k"): array[:2] for name, array in files.items()}
    for name, array in files.items():
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
    return tmp_path


def source(folder, **settings):
    return SOURCES["fashion_mnist"](directory=str(folder), **settings)


@pytest.mark.parametrize(("name", "count"), [("train", 5), ("test", 2)])
def test_reads_its_files(folder, name, count):
    of = source(folder)
    arrays = of.split(name).arrays
    np.testing.assert_array_equal(arrays["image"], IMAGE[:count, ..., None])
    np.testing.assert_array_equal(arrays["label"], LABEL[:count])
    assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
    assert arrays["image"].shape[1:] == of.shape
    assert (of.levels, of.classes, of.range) == (256, 10, (-1.0, 1.0))


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"apt-get install dataset-fashion-mnist, or set data.directory") as error:
        source(tmp_path).split("test")
    assert f"{tmp_path}/t10k-images-idx3-ubyte.gz" in str(error.value)


DAMAGE = {
    "cut within the compressed data": (IMAGES, lambda: gzip.compress(idx(IMAGE))[:-200], "cannot be read"),
    "not compressed": (IMAGES, lambda: idx(IMAGE), "cannot be read"),
    "a byte changed": (LABELS, lambda: gzip.compress(idx(LABEL))[:-8] + bytes(8), "cannot be read"),
    "cut before it was compressed": (
        IMAGES,
        lambda: gzip.compress(idx(IMAGE)[:-1]),
        "should hold 5x28x28 bytes after its first 16, not 3919",
    ),
    "too long": (LABELS, lambda: gzip.compress(idx(LABEL) + b"x"), "should hold 5 bytes after its first 8, not 6"),
    "cut in the sizes": (IMAGES, lambda: gzip.compress(idx(IMAGE)[:9]), "should hold 5x0x0 bytes after"),
    "empty": (
        LABELS,
        lambda: gzip.compress(b""),
        "no IDX file of bytes along 1 axes: it begins with 0x0000, not 0x0801",
    ),
    "of floats": (IMAGES, lambda: gzip.compress(idx(IMAGE, magic=0x0D03)), "begins with 0x0d03, not 0x0803"),
    "labels for images": (IMAGES, lambda: gzip.compress(idx(LABEL)), "begins with 0x0801, not 0x0803"),
    "another size": (IMAGES, lambda: gzip.compress(idx(IMAGE[:, :27])), "holds images of 27x28 pixels, not 28x28"),
    "fewer labels": (LABELS, lambda: gzip.compress(idx(LABEL[:4])), "holds 5 images and .* 4 labels"),
    "an eleventh class": (LABELS, lambda: gzip.compress(idx(LABEL + 2)), "holds label 11; there are 10, from 0"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged(folder, case):
    name, content, message = DAMAGE[case]
    (folder / name).write_bytes(content())
    with pytest.raises(UserError, match=message) as error:
        source(folder).split("train")
    assert str(folder / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_images_at_all(folder):
    for name, array in ((IMAGES, IMAGE), (LABELS, LABEL)):
        (folder / name).write_bytes(gzip.compress(idx(array[:0])))
    with pytest.raises(UserError, match="holds 0 images"):
        source(folder).split("train")
