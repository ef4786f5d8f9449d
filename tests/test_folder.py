"""Images in a folder or a zip: which they are, what labels they have, what is in which part; every mistake by name."""

import json
import os
import pickle

import numpy as np
import pytest

from score_sde.data import SOURCES, InMemory, on_demand, whole
from score_sde.errors import RunFailed, UserError
from tests.sources import both, pictures, png, refused, write, zipped


class TestFolder:
    IMAGES = pictures(6)

    def source(self, path, **settings):
        return SOURCES["folder"](path=str(path), **{"size": 8, **settings})

    def test_any_nesting_without_labels(self, tmp_path):
        names = ["a.png", "x/b.PNG", "x/y/c.png", "z/d.png", "z/e.png", "z/f.png"]
        write(tmp_path, dict(zip(names, self.IMAGES, strict=True)))
        write(tmp_path, {"notes.txt": b"", ".hidden/g.png": self.IMAGES[0], "x/.h.png": b""})
        source = self.source(tmp_path, test_share=0.4)
        assert both(source) == sorted((image.tobytes(), 0) for image in self.IMAGES)
        assert (len(source.split("train")), len(source.split("test"))) == (4, 2)
        assert source.split("train").fields == ("image",)

    def labelled(self, root, kind):
        """Classes 1, 0, 1, 2, 0, 2, given in four ways."""
        label = [1, 0, 1, 2, 0, 2]
        names = [f"{'bcabac'[n] if kind == 'folder' else 'some'}/{n}.png" for n in range(6)]
        if kind == "folder":
            label = ["abc".index(name[0]) for name in names]
        files = dict(zip(names, self.IMAGES, strict=True))
        pairs = [[name, y] for name, y in zip(names, label, strict=True)]
        if kind in ("dataset.json", "labels.json"):
            files[kind] = {"labels": pairs}
        if kind == "metadata.jsonl":
            lines = [{"file_name": name, "label": "pqr"[y], "text": "a caption"} for name, y in pairs]
            files[kind] = "\n".join(map(json.dumps, lines)).encode()
        write(root, files)
        return sorted((image.tobytes(), y) for image, y in zip(self.IMAGES, label, strict=True))

    @pytest.mark.parametrize("kind", ["folder", "dataset.json", "labels.json", "metadata.jsonl"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_labels(self, kind, packed, tmp_path):
        expected = self.labelled(tmp_path / "set", kind)
        path = zipped(tmp_path / "set", tmp_path / "set.zip") if packed else tmp_path / "set"
        assert both(self.source(path, classes=3)) == expected

    def test_labels_are_left_out_where_none_are_asked_for(self, tmp_path):
        write(tmp_path, {f"{n}.png": image for n, image in enumerate(self.IMAGES)} | {"dataset.json": {"labels": None}})
        assert len(both(self.source(tmp_path))) == 6
        refused(self.source(tmp_path, classes=2), "no class is given for 0.png")

    def test_parts_by_folder(self, tmp_path):
        write(
            tmp_path, {f"{('train', 'test')[n // 4]}/{'uv'[n % 2]}/{n}.png": each for n, each in enumerate(self.IMAGES)}
        )
        write(tmp_path, {"val/u/9.png": self.IMAGES[0]})
        source = self.source(tmp_path, classes=2)
        for name, part in (("train", self.IMAGES[:4]), ("test", self.IMAGES[4:])):
            records = source.split(name)
            assert sorted(map(bytes, whole(records, "image"))) == sorted(map(bytes, part))
            assert np.bincount(whole(records, "label")).tolist() == [len(part) // 2] * 2

    def test_a_folder_train_alone_may_be_a_class(self, tmp_path):
        write(tmp_path, {f"{('train', 'car')[n % 2]}/{n}.png": each for n, each in enumerate(self.IMAGES)})
        labels = [y for _, y in both(self.source(tmp_path, classes=2))]
        assert sorted(labels) == [0, 0, 0, 1, 1, 1]

    def test_images_of_other_sizes_are_cut_and_resized(self, tmp_path):
        image = np.zeros((8, 16, 3), np.uint8)
        image[:, 4:12] = [10, 20, 30]
        write(tmp_path, {"a.png": image, "b.png": image})
        records = self.source(tmp_path, size=4).split("train")
        assert (whole(records, "image") == [10, 20, 30]).all()
        assert whole(records, "image").shape == (1, 4, 4, 3)

    MISTAKES = {
        "nothing": ({"notes.txt": b""}, {}, ["no file in", ".png"]),
        "one image": ({"a.png": IMAGES[0]}, {}, ["cannot be divided into training and test"]),
        "a missing file": (
            {"a.png": IMAGES[0], "b.png": IMAGES[1], "labels.json": {"labels": [["a.png", 0], ["c.png", 1]]}},
            {"classes": 2},
            ["labels.json names c.png", "2 files that are there"],
        ),
        "an image without class": (
            {"a.png": IMAGES[0], "b.png": IMAGES[1], "labels.json": {"labels": [["a.png", 0]]}},
            {"classes": 2},
            ["no class is given for b.png"],
        ),
        "a label out of range": (
            {"a.png": IMAGES[0], "b.png": IMAGES[1], "labels.json": {"labels": [["a.png", 0], ["b.png", 5]]}},
            {"classes": 5},
            ["b.png has the label 5", "0 to 4"],
        ),
        "a label below 0": (
            {"a.png": IMAGES[0], "labels.json": {"labels": [["a.png", -1]]}},
            {"classes": 5},
            ["gives a.png the class -1"],
        ),
        "a vector for a label": (
            {"a.png": IMAGES[0], "labels.json": {"labels": [["a.png", [0.5, 1.0]]]}},
            {"classes": 5},
            ["gives a.png the class [0.5, 1.0]"],
        ),
        "twice": (
            {"a.png": IMAGES[0], "labels.json": {"labels": [["a.png", 0], ["a.png", 1]]}},
            {"classes": 2},
            ["names a.png twice"],
        ),
        "too few classes": (
            {"u/a.png": IMAGES[0], "v/b.png": IMAGES[1]},
            {"classes": 3},
            ["has 2 classes (u, v)", "set data.classes=2"],
        ),
        "two label files": (
            {"a.png": IMAGES[0], "labels.json": {}, "dataset.json": {}},
            {},
            ["dataset.json and labels.json"],
        ),
        "label files above and below": (
            {"train/a.png": IMAGES[0], "test/b.png": IMAGES[1], "labels.json": {}, "train/labels.json": {}},
            {},
            ["labels.json and train/labels.json"],
        ),
        "no JSON": ({"a.png": IMAGES[0], "labels.json": b"{"}, {}, ["labels.json is no JSON"]),
        "deep JSON": ({"a.png": IMAGES[0], "labels.json": b"[" * 100000}, {}, ["labels.json is nested too deeply"]),
        "a deep line": (
            {"a.png": IMAGES[0], "metadata.jsonl": b"[" * 100000},
            {},
            ["line 1 of metadata.jsonl is nested too deeply"],
        ),
        "another JSON": ({"a.png": IMAGES[0], "labels.json": {"labels": [1, 2]}}, {}, ["must hold", "labels"]),
        "a line without a name": (
            {"a.png": IMAGES[0], "metadata.jsonl": b'{"file_name": "a.png"}\n{"label": 1}'},
            {},
            ["line 2 of metadata.jsonl has no file_name"],
        ),
        "numbers and names": (
            {"a.png": IMAGES[0], "b.png": IMAGES[1], "labels.json": {"labels": [["a.png", 0], ["b.png", "x"]]}},
            {"classes": 2},
            ["the class of a.png is a number"],
        ),
        "damaged images": (
            {"a.png": IMAGES[0], "b.png": b"text", "c.png": png(IMAGES[0])[:60], "d.jpg": b""},
            {"test_share": 0.1},
            ["cannot be used", "b.png: it is no PNG", "c.png: it is damaged", "scripts/prepare_dataset"],
        ),
    }

    @pytest.mark.parametrize("case", MISTAKES)
    def test_mistakes(self, case, tmp_path):
        files, settings, words = self.MISTAKES[case]
        write(tmp_path / "set", files)
        source = self.source(tmp_path / "set", **settings)
        if case == "damaged images":  # whichever part they are in
            found = []
            for name in ("train", "test"):
                try:
                    source.split(name)
                except UserError as error:
                    found.append(str(error))
            assert all(any(word in text for text in found) for word in words), found
            return
        refused(source, *words)

    def test_no_folder_and_no_zip(self, tmp_path):
        refused(self.source(""), "set data.source=folder:PATH")
        refused(self.source(tmp_path / "none"), "there is no", "give a folder or a zip")
        (tmp_path / "file").write_bytes(b"PK not a zip")
        refused(self.source(tmp_path / "file"), "neither a folder nor a zip")

    def test_a_damaged_zip(self, tmp_path):
        path = zipped(write(tmp_path / "set", {"a.png": self.IMAGES[0], "b.png": self.IMAGES[1]}), tmp_path / "set.zip")
        content = bytearray(path.read_bytes())
        content[60] ^= 255  # of the first file's data
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a.png: it is damaged in the zip|a.png: it is damaged"):
            self.source(path).split("train"), self.source(path).split("test")

    @pytest.mark.parametrize("name", ["dataset.json", "metadata.jsonl"])
    def test_labels_damaged_in_a_zip(self, name, tmp_path):
        files = {"z.png": self.IMAGES[0], name: b'{"file_name": "z.png", "labels": {"z.png": 0}}'}
        path = zipped(write(tmp_path / "set", files), tmp_path / "set.zip")
        content = bytearray(path.read_bytes())
        content[content.index(b'"labels"') + 1] ^= 1  # stored first, without compression
        path.write_bytes(content)
        refused(self.source(path, classes=1), f"{name} cannot be read: it is damaged in the zip: Bad CRC-32")

    def test_names_need_not_be_utf8(self, tmp_path, monkeypatch):
        monkeypatch.setattr(on_demand, "HELD", 0)
        for name, image in zip((b"\xff.png", b"\xfe.png", b"c.png"), self.IMAGES[:3], strict=True):
            (tmp_path / os.fsdecode(name)).write_bytes(png(image))
        source = self.source(tmp_path)
        assert both(source) == sorted((image.tobytes(), 0) for image in self.IMAGES[:3])
        first = source.split("train").fingerprint
        assert source.split("train").fingerprint == first != source.split("test").fingerprint
        kept = source.split("train").names[0]
        os.rename(tmp_path / kept, tmp_path / os.fsdecode(b"\xfd.png"))
        assert self.source(tmp_path).split("train").fingerprint != first

    def test_large_sets_are_read_on_demand_and_alike(self, tmp_path, monkeypatch):
        self.labelled(tmp_path / "set", "dataset.json")
        path = zipped(tmp_path / "set", tmp_path / "set.zip")
        held = self.source(path, classes=3).split("train")
        monkeypatch.setattr(on_demand, "HELD", 0)
        read = self.source(path, classes=3).split("train")
        assert isinstance(held, InMemory)
        assert not isinstance(read, InMemory)
        read = pickle.loads(pickle.dumps(read))  # as it reaches another process
        index = np.array([2, 0, 2])
        for fields in (None, ("image",), ("label",)):
            one, two = held.gather(index, fields), read.gather(index, fields)
            assert one.keys() == two.keys()
            for name, value in one.items():
                np.testing.assert_array_equal(two[name], value)
                assert two[name].dtype == value.dtype

    def test_what_is_damaged_is_named_when_it_is_met(self, tmp_path, monkeypatch):
        monkeypatch.setattr(on_demand, "HELD", 0)
        write(tmp_path, {"a.png": b"", "b.png": b""})
        records = self.source(tmp_path).split("train")
        with pytest.raises(RunFailed, match=r"[ab]\.png: it is no PNG"):
            records.gather(np.array([0]))

    def test_fingerprint(self, tmp_path, monkeypatch):
        for held in (2**28, 0):
            monkeypatch.setattr(on_demand, "HELD", held)
            root = tmp_path / str(held)
            write(root, {f"{n}.png": image for n, image in enumerate(self.IMAGES)})
            of = lambda root=root, **settings: self.source(root, **settings).split("train").fingerprint
            first = of()
            (root / "0.png").touch()
            assert of() == first
            assert of(size=4) != first
            assert of(test_share=0.5) != first
            write(root, {f"{n}.png": image[::-1] for n, image in enumerate(self.IMAGES)})
            assert of() != first
