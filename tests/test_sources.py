"""Every source reads small real files of its kind, and says in one line what is wrong with those that are not."""

import gzip
import hashlib
import io
import pickle
import struct

import numpy as np
import pytest

from score_sde.data import SOURCES, InMemory, image_records, on_demand, whole
from score_sde.data.image_records import encode
from score_sde.data.listing import held_out
from score_sde.data.toys import TOYS
from score_sde.errors import UserError
from tests.sources import both, pictures, png, refused, write

RANDOM = np.random.default_rng(0)


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


class TestIDX:
    IMAGE = RANDOM.integers(256, size=(5, 6, 4), dtype=np.uint8)
    LABEL = np.array([2, 0, 1, 1, 2], np.uint8)

    def files(self, root, packed=True, test="t10k"):
        for part in ("train", test):
            for kind, array in (("images-idx3", self.IMAGE), ("labels-idx1", self.LABEL)):
                name = root / f"set-{part}-{kind}-ubyte{'.gz' if packed else ''}"
                name.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
        return SOURCES["idx"](directory=str(root), sides=(6, 4), classes=3)

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("test", ["t10k", "test"])
    def test_reads(self, packed, test, tmp_path):
        source = self.files(tmp_path, packed, test)
        assert source.shape == (6, 4, 1)
        for name in ("train", "test"):
            records = source.split(name)
            np.testing.assert_array_equal(whole(records, "image"), self.IMAGE[..., None])
            np.testing.assert_array_equal(whole(records, "label"), self.LABEL)

    def test_mistakes(self, tmp_path):
        refused(SOURCES["idx"](), "set data.source=idx:FOLDER")
        refused(SOURCES["idx"](directory=str(tmp_path / "none")), "is no folder")
        refused(
            SOURCES["idx"](directory=str(tmp_path)), "one file of train images", "train-images-idx3-ubyte.gz", "not 0"
        )
        source = self.files(tmp_path)
        (tmp_path / "other-train-images-idx3-ubyte").write_bytes(b"")
        refused(source, "not 2: other-train-images-idx3-ubyte, set-train-images-idx3-ubyte.gz")
        with pytest.raises(UserError, match="sides must be a height and a width"):
            SOURCES["idx"](sides=(3,))


class TestNPZ:
    IMAGES = pictures(6)
    LABELS = np.array([0, 1, 2, 2, 1, 0])

    def source(self, path, arrays, **settings):
        np.savez(path, **arrays)
        return SOURCES["npz"](file=str(path), **settings)

    @pytest.mark.parametrize("names", [("image", "label"), ("images", "labels"), ("arr_0", "arr_1")])
    def test_reads(self, names, tmp_path):
        source = self.source(tmp_path / "a.npz", dict(zip(names, (self.IMAGES, self.LABELS), strict=True)), classes=3)
        assert (source.shape, source.levels) == ((8, 8, 3), 256)
        expected = [(image.tobytes(), int(y)) for image, y in zip(self.IMAGES, self.LABELS, strict=True)]
        assert both(source) == sorted(expected)

    def test_levels_and_shape_are_those_of_the_file(self, tmp_path):
        deep = self.source(tmp_path / "a.npz", {"image": self.IMAGES[..., 0].astype(np.uint16)})
        assert (deep.shape, deep.levels) == ((8, 8, 1), 65536)
        other = self.source(tmp_path / "c.npz", {"image": self.IMAGES[..., 0].astype(">u2")})  # of the other byte order
        np.testing.assert_array_equal(whole(other.split("train"), "image"), whole(deep.split("train"), "image"))
        points = self.source(tmp_path / "b.npz", {"arr_0": RANDOM.normal(size=(9, 3))})
        assert (points.shape, points.levels) == ((3,), 0)
        assert whole(points.split("train"), "image").dtype == np.float32

    def test_a_file_of_its_own_for_testing(self, tmp_path):
        np.savez(tmp_path / "test.npz", image=self.IMAGES[:2])
        source = self.source(tmp_path / "a.npz", {"image": self.IMAGES}, test=str(tmp_path / "test.npz"))
        np.testing.assert_array_equal(whole(source.split("train"), "image"), self.IMAGES)
        np.testing.assert_array_equal(whole(source.split("test"), "image"), self.IMAGES[:2])

    @pytest.mark.parametrize("grey", ["train", "test"])
    def test_grey_images_may_lack_their_axis_in_either_file(self, grey, tmp_path):
        images = dict.fromkeys(("train", "test"), self.IMAGES[..., :1])
        images[grey] = images[grey][..., 0]
        np.savez(tmp_path / "test.npz", image=images["test"])
        source = self.source(tmp_path / "a.npz", {"image": images["train"]}, test=str(tmp_path / "test.npz"))
        for name in images:
            np.testing.assert_array_equal(whole(source.split(name), "image"), self.IMAGES[..., :1])

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, ["test.npz is no readable .npz file"]),
            (b"text", ["test.npz is no readable .npz file"]),
            ({"x": IMAGES}, ["test.npz holds x"]),
            (
                {"image": IMAGES.transpose(0, 3, 1, 2)},
                ["uint8 of shape (3, 8, 8)", "a.npz are uint8 of shape (8, 8, 3)"],
            ),
            ({"image": IMAGES.reshape(6, 8, 24)}, ["shape (8, 24, 1)"]),
            ({"image": IMAGES.astype(np.uint16)}, ["uint16 of shape (8, 8, 3)"]),
        ],
        ids=["missing", "no zip", "another name", "another layout", "flat", "other levels"],
    )
    def test_a_file_for_testing_that_does_not_fit_is_told_when_it_is_built(self, content, words, tmp_path):
        path = tmp_path / "test.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.savez(path, **content)
        with pytest.raises(UserError) as error:
            self.source(tmp_path / "a.npz", {"image": self.IMAGES}, test=str(path))
        assert all(word in str(error.value) for word in words), error.value

    def test_a_file_that_changed_since_is_refused(self, tmp_path):
        source = self.source(tmp_path / "a.npz", {"image": self.IMAGES})
        for changed in (self.IMAGES.transpose(0, 3, 1, 2), self.IMAGES.astype(np.int64)):
            np.savez(tmp_path / "a.npz", image=changed)
            refused(source, "those of", "are uint8 of shape (8, 8, 3)")

    BUILT = {
        "no file": (None, ["set data.source=npz:FILE"]),
        "missing": ("none", ["no readable .npz file"]),
        "no zip": (b"text", ["no readable .npz file"]),
        "another name": ({"x": IMAGES}, ["holds x", "image, images, arr_0"]),
        "integers": ({"image": IMAGES.astype(np.int64)}, ["data of int64", "uint8, uint16, float32, float64"]),
        "a pickle": ({"image": np.array([{"a": 1}], object)}, ["data of object"]),
        "one axis": ({"image": IMAGES[:, 0, 0, 0]}, ["shape (6,)", "images (n, height, width[, channels])"]),
        "empty": ({"image": IMAGES[:0]}, ["shape (0, 8, 8, 3)"]),
    }

    @pytest.mark.parametrize("case", BUILT)
    def test_mistakes_that_are_found_when_it_is_built(self, case, tmp_path):
        content, words = self.BUILT[case]
        path = tmp_path / "a.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, dict):
            np.savez(path, **content)
        with pytest.raises(UserError) as error:
            SOURCES["npz"](file="" if content is None else str(path))
        assert all(word in str(error.value) for word in words), error.value

    def test_mistakes(self, tmp_path):
        path = tmp_path / "a.npz"
        refused(self.source(path, {"image": self.IMAGES}, classes=2), "needs one of label, labels, arr_1")
        labelled = {"image": self.IMAGES, "label": self.LABELS}
        refused(self.source(path, labelled, classes=2), "holds label 2", "0 to 1")
        refused(self.source(path, {**labelled, "label": self.LABELS[:4]}, classes=3), "not 6 integers")
        refused(self.source(path, {**labelled, "label": np.array([None] * 6)}, classes=3), "no readable .npz")
        refused(self.source(path, {"image": np.full((4, 2), np.nan)}), "not finite")
        refused(self.source(path, {"image": np.full((4, 2), 1e300)}), "beyond what float32 holds")
        refused(self.source(path, {"image": self.IMAGES[:1]}), "cannot be divided")


def shards(root, images, labels, count=2):
    """Prepared images, without a manifest."""
    from array_record.python import array_record_module

    root.mkdir(exist_ok=True)
    for shard in range(count):
        path = root / f"set-{shard:05d}-of-{count:05d}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for number in range(shard, len(images), count):
            writer.write(encode(images[number], label=labels[number], caption=None, name=f"{number}.png"))
        writer.close()
    return root


class TestArrayRecord:
    IMAGES = pictures(7)
    LABELS = [0, 1, 2, 0, 1, 2, 0]
    EXPECTED = sorted((image.tobytes(), y) for image, y in zip(IMAGES, LABELS, strict=True))

    def source(self, pattern, **settings):
        return SOURCES["array_record"](pattern=str(pattern), **{"size": 8, "classes": 3, **settings})

    @pytest.mark.parametrize("held", [2**28, 0])
    @pytest.mark.parametrize("pattern", ["", "*.array_record", "set-*"])
    def test_reads(self, pattern, held, tmp_path, monkeypatch):
        monkeypatch.setattr(on_demand, "HELD", held)
        root = shards(tmp_path / "set", self.IMAGES, self.LABELS)
        assert both(self.source(root / pattern)) == self.EXPECTED
        records = pickle.loads(pickle.dumps(self.source(root).split("train")))
        assert len(records.gather(np.array([0, 3]))["image"]) == 2

    def test_both_parts_share_what_is_held(self, tmp_path, monkeypatch):
        root, decoded, decode = shards(tmp_path / "set", self.IMAGES, self.LABELS), [], image_records.decode
        monkeypatch.setattr(image_records, "decode", lambda record: decoded.append(record) or decode(record))
        source = self.source(root)
        train, test = source.split("train"), source.split("test")
        assert len(decoded) == len(train) + len(test) == len(self.IMAGES)
        assert train.records is test.records
        assert train.fingerprint != test.fingerprint

    def test_another_pattern_for_testing(self, tmp_path):
        root, other = (shards(tmp_path / name, self.IMAGES, self.LABELS) for name in "ab")
        source = self.source(root, test=str(other))
        assert len(source.split("train")) == len(source.split("test")) == 7

    def test_prepared_sets_and_their_manifest(self, tmp_path):
        root = shards(tmp_path / "set", self.IMAGES, self.LABELS)
        files = sorted(root.iterdir())
        sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        named = [{"file": p.name, "records": n, "sha256": s} for p, n, s in zip(files, (4, 3), sums, strict=True)]
        manifest = {
            "format": "score_sde images 1",
            "resolution": 8,
            "channels": 3,
            "records": 7,
            "classes": {"names": ["a", "b", "c"]},
            "shards": named,
            "histogram": [3, 2, 2],
            "mean": [0.5] * 3,
            "deviation": [0.3] * 3,
            "skipped": [],
            "settings": {},
            "fingerprint": hashlib.sha256("".join(sums).encode()).hexdigest(),
        }
        write(root, {"manifest.json": manifest})
        assert both(self.source(root)) == self.EXPECTED
        refused(self.source(root, size=16), "holds images of 8 pixels, fewer than 16")
        for classes in (2, 4):
            words = "set has 3 classes (a, b, c): set data.classes=3, not "
            refused(self.source(root, classes=classes), f"{words}{classes}")
        assert self.source(root, classes=0).split("train").fields == ("image",)
        write(root, {"manifest.json": manifest | {"classes": {"names": ["0", "1", "2"]}}})
        assert both(self.source(root, classes=4)) == self.EXPECTED  # labels that are numbers may be of more
        write(root, {"manifest.json": manifest})
        (root / "other.array_record").write_bytes(files[0].read_bytes())
        refused(self.source(root), "does not name other.array_record")
        (root / "other.array_record").unlink()
        files[1].write_bytes(files[0].read_bytes())
        refused(self.source(root), "tells of 7 records; the shards hold 8")

    def test_mistakes(self, tmp_path):
        refused(self.source(""), "set data.source=array_record:PATTERN")
        refused(self.source(tmp_path), "no array_record file")
        root = shards(tmp_path / "set", self.IMAGES, self.LABELS)
        for name in ("train", "test"):
            refused(self.source(root, classes=2), "its label is 2", "0 to 1", name=name)
        refused(
            self.source(shards(tmp_path / "bare", self.IMAGES, [None] * 7)), "its label is None", "0 leaves labels out"
        )
        assert len(self.source(tmp_path / "bare", classes=0).split("train")) == 6
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.array_record").write_bytes(b"text")
        refused(self.source(tmp_path / "text"), "no readable array_record")


@pytest.fixture(scope="module")
def prepared_tfds(tmp_path_factory):
    """A set of TensorFlow Datasets, prepared as array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    images = pictures(6, 8, 8)

    class Mine(tfds.core.GeneratorBasedBuilder):
        labelled = True
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no files beside this one belong to it

        def _info(self):
            image, label = tfds.features.Image(shape=(None, None, 3)), tfds.features.ClassLabel(num_classes=3)
            features = {"image": image} | ({"label": label} if self.labelled else {})
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples(0, 4), "test": self._generate_examples(4, 6)}

        def _generate_examples(self, start, end):
            for n in range(start, end):
                label = {"label": n % 3} if self.labelled else {}
                yield n, {"image": io.BytesIO(png(images[n])), **label}

    class Unlabelled(Mine):
        labelled = False

    root = tmp_path_factory.mktemp("tfds")
    for builder in (Mine, Unlabelled):
        builder(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root, sorted((image.tobytes(), n % 3) for n, image in enumerate(images))


class TestTFDS:
    @pytest.mark.parametrize("held", [2**28, 0])
    def test_reads(self, held, prepared_tfds, monkeypatch):
        monkeypatch.setattr(on_demand, "HELD", held)
        root, expected = prepared_tfds
        source = SOURCES["tfds"](name="mine", directory=str(root), size=8, classes=3)
        assert both(source) == expected
        assert (len(source.split("train")), len(source.split("test"))) == (4, 2)
        records = pickle.loads(pickle.dumps(source.split("train")))
        np.testing.assert_array_equal(records.gather(np.arange(4))["image"], whole(source.split("train"), "image"))
        assert records.fingerprint == source.split("train").fingerprint != source.split("test").fingerprint

    def test_its_shards_by_pattern(self, prepared_tfds):
        root, expected = prepared_tfds
        folder = root / "mine" / "1.0.0"
        train, test = (str(folder / f"mine-{part}.array_record*") for part in ("train", "test"))
        assert both(SOURCES["array_record"](pattern=train, test=test, size=8, classes=3)) == expected

    def test_mistakes(self, prepared_tfds):
        root, _ = prepared_tfds
        settings = {"name": "mine", "directory": str(root), "size": 8}
        refused(SOURCES["tfds"](**settings, classes=2), "its label is 2")
        refused(SOURCES["tfds"](**settings, train="training"), "cannot be read")
        refused(
            SOURCES["tfds"](name="unlabelled", directory=str(root), size=8, classes=2), "no field 'label', but image"
        )
        records = SOURCES["tfds"](name="unlabelled", directory=str(root), size=8).split("train")
        assert records.fields == ("image",)


class TestToys:
    @pytest.mark.parametrize("name", TOYS)
    def test_points(self, name):
        source = SOURCES["toys"](name=name, records=5000)
        train, test = (whole(source.split(part), "image") for part in ("train", "test"))
        assert (train.shape, train.dtype, test.shape) == ((5000, 2), np.float32, (1000, 2))
        assert np.abs(train).max() < 1.4
        assert 0.3 < train.std() < 0.8
        np.testing.assert_array_equal(train, whole(source.split("train"), "image"))
        assert not np.isin(train[:, 0], test[:, 0]).any()

    def test_without_noise_they_lie_where_their_equations_say(self):
        points = {name: whole(SOURCES["toys"](name=name, noise=0.0).split("train"), "image") for name in TOYS}
        radius = {name: np.hypot(*each.T) for name, each in points.items()}
        assert np.abs(radius["rings"] * 4 - np.round(radius["rings"] * 4)).max() < 1e-5
        assert np.allclose(radius["eight_gaussians"], 0.75, atol=1e-6)
        angle = 4.5 * np.pi * radius["swiss_roll"]
        np.testing.assert_allclose(points["swiss_roll"][:, 0], radius["swiss_roll"] * np.cos(angle), atol=1e-5)
        moons = 1.5 * points["two_moons"] + [0.5, 0.25]
        upper, lower = np.hypot(*moons.T), np.hypot(moons[:, 0] - 1, moons[:, 1] - 0.5)
        assert np.minimum(np.abs(upper - 1), np.abs(lower - 1)).max() < 1e-5

    def test_the_checkerboard_is_uniform_over_its_squares(self):
        points = whole(SOURCES["toys"](name="checkerboard").split("train"), "image")
        squares, _, _ = np.histogram2d(*points.T, bins=4, range=((-1, 1), (-1, 1)))
        column, row = np.indices((4, 4))
        dark = (row + column) % 2 == 0
        assert squares[~dark].sum() == 0
        expected = len(points) / 8
        assert ((squares[dark] - expected) ** 2 / expected).sum() < 24.3  # χ² of 7 at 0.1 %

    def test_unknown(self):
        with pytest.raises(UserError, match="did you mean 'two_moons'"):
            SOURCES["toys"](name="two_moon")


def test_what_is_held_out_is_a_share_and_the_same():
    for count, share, expected in ((10, 0.1, 1), (100, 0.25, 25), (2, 0.9, 1), (3, 0.01, 1)):
        held = held_out(count, share)
        assert held.sum() == expected
        np.testing.assert_array_equal(held, held_out(count, share))


def test_fingerprints_in_memory_are_of_content_dtype_shape_and_name():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    of = lambda **arrays: InMemory(arrays).fingerprint
    first = of(image=array)
    assert of(image=array.copy()) == first == of(image=np.asfortranarray(array))
    others = [of(image=array.reshape(3, 2, 2)), of(image=array.view(np.int8)), of(label=array), of(image=array + 1)]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("name", ["digits", "synthetic", "toys"])
def test_every_source_has_a_fingerprint(name):
    source = SOURCES[name]()
    one, two = source.split("train").fingerprint, source.split("test").fingerprint
    assert one != two
    assert one == SOURCES[name]().split("train").fingerprint
