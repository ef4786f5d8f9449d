"""What `listing` and `tar_files` read: folders, zips and tars as people have them, and their labels."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from score_sde.data import SOURCES, on_demand
from score_sde.data.preparation import Preparation, Settings
from score_sde.errors import UserError
from tests.preparing import noise, png, prepared, records, write
from tests.sources import zipped


@pytest.fixture
def three(tmp_path) -> Path:
    return write(tmp_path / "three", **{f"{n}.png": png(noise(n)) for n in range(3)})


OUTSIDE = ("../evil.png", "/tmp/evil_of_score_sde.png", "a/../../evil2.png", "C:\\evil.png")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_of_an_archive_that_lead_elsewhere_are_read_and_never_written(kind, tmp_path):
    archive = tmp_path / "deep" / f"set.{kind}"
    archive.parent.mkdir()
    contents = {name: png(noise(number)) for number, name in enumerate(OUTSIDE)}
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        with tarfile.open(archive, "w") as file:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    before = set(tmp_path.rglob("*"))
    manifest = prepared(archive, tmp_path / "deep" / "out", labels=False)
    assert manifest.records + len(manifest.skipped) == len(OUTSIDE)
    written = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "deep" / "out") for path in written)
    assert not Path("/tmp/evil_of_score_sde.png").exists()
    for image, header in records(tmp_path / "deep" / "out"):
        np.testing.assert_array_equal(image, noise(OUTSIDE.index(header["name"])))


def test_a_tar_is_read_in_place_and_its_links_are_named(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for number in range(200):
            content = png(noise(number))
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number:03d}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    manifest = prepared(tmp_path / "set.tar", tmp_path / "out", processes=2)
    assert manifest.skipped == [{"name": "a/link.png", "reason": "it is a link in the tar, and no file"}]
    assert (manifest.records, manifest.histogram) == (200, [100, 100])
    for image, header in records(tmp_path / "out"):
        np.testing.assert_array_equal(image, noise(int(header["name"][2:5])))


@pytest.mark.parametrize("name", ["photos.target.zip", "set.tar.zip", "no name of a zip"])
def test_a_zip_is_one_by_its_content(name, three, tmp_path):
    assert prepared(zipped(three, tmp_path / name), tmp_path / "out").records == 3


def test_a_tar_is_one_by_its_content(three, tmp_path):
    """Also where it holds a zip, whose end is near the tar's."""
    with tarfile.open(tmp_path / "set", "w") as archive:
        archive.add(three, ".")
        archive.add(zipped(three, tmp_path / "last.zip"), "last.zip")
    assert prepared(tmp_path / "set", tmp_path / "out").records == 3


@pytest.mark.parametrize("length", [700, 1600, 2048, 2500, 3072])
def test_a_tar_that_is_cut_short(length, three, tmp_path):
    """Also where two files end, and in the middle of a header, of which Python's own reader says nothing."""
    with tarfile.open(tmp_path / "set.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(three.iterdir()):
            archive.add(path, path.name)  # 512 bytes of header and 512 of content
    assert prepared(tmp_path / "set.tar", tmp_path / "whole").records == 3
    content = (tmp_path / "set.tar").read_bytes()
    (tmp_path / "set.tar").write_bytes(content[:length])
    with pytest.raises(UserError, match=r"cut short|cannot be read"):
        prepared(tmp_path / "set.tar", tmp_path / "out")


def of_here(kind: str, folder: Path, path: Path) -> Path:
    """`tar -cf PATH -C FOLDER .`, or a zip with such names."""
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(folder, ".")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for each in sorted(each for each in folder.rglob("*") if each.is_file()):
                archive.writestr(zipfile.ZipInfo(f"./{each.relative_to(folder).as_posix()}"), each.read_bytes())
    return path


@pytest.mark.parametrize("kind", ["tar", "zip"])
class TestAnArchiveOfHere:
    """Its names begin with ./, which is no folder."""

    def test_classes(self, kind, tmp_path):
        write(tmp_path / "in", **{f"{'ab'[number % 2]}/{number}.png": png(noise(number)) for number in range(5)})
        manifest = prepared(of_here(kind, tmp_path / "in", tmp_path / f"set.{kind}"), tmp_path / "out")
        assert (manifest.classes, manifest.histogram) == (["a", "b"], [3, 2])

    def test_labels(self, kind, tmp_path):
        labels = json.dumps({"labels": [["0.png", 1], ["./1.png", 0]]}).encode()
        write(tmp_path / "in", **{"0.png": png(noise(0)), "1.png": png(noise(1)), "labels.json": labels})
        prepared(of_here(kind, tmp_path / "in", tmp_path / f"set.{kind}"), tmp_path / "out")
        assert {header["name"]: header["label"] for _, header in records(tmp_path / "out")} == {"0.png": 1, "1.png": 0}

    def test_parts(self, kind, tmp_path):
        write(tmp_path / "in", **{f"{part}/{n}.png": png(noise(n)) for part in ("train", "test") for n in range(2)})
        archive = of_here(kind, tmp_path / "in", tmp_path / f"set.{kind}")
        with pytest.raises(UserError, match="choose one by --part"):
            prepared(archive, tmp_path / "out")
        assert prepared(archive, tmp_path / "out", part="test").records == 2

    def test_no_folders(self, kind, tmp_path):
        write(tmp_path / "in", **{f"{number}.png": png(noise(number)) for number in range(2)})
        manifest = prepared(of_here(kind, tmp_path / "in", tmp_path / f"set.{kind}"), tmp_path / "out")
        assert (manifest.records, manifest.classes) == (2, None)


def test_what_is_no_file_is_named_and_not_waited_for(three, tmp_path):
    os.mkfifo(three / "pipe.png")
    manifest = prepared(three, tmp_path / "out", max_damaged=0.5)
    assert manifest.records == 3
    assert manifest.skipped == [{"name": "pipe.png", "reason": "it is a pipe, a socket or a device, and no file"}]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_is_damaged_in_a_zip_is_named(compression, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", compression) as archive:
        archive.writestr("0.png", png(noise(0)))
        archive.writestr("1.png", png(noise(1)))
    content = bytearray((tmp_path / "set.zip").read_bytes())
    content[45:60] = b"\xff" * 15
    (tmp_path / "set.zip").write_bytes(content)
    manifest = prepared(tmp_path / "set.zip", tmp_path / "out", max_damaged=0.5)
    assert (manifest.records, [each["name"] for each in manifest.skipped]) == (1, ["0.png"])
    assert any(word in manifest.skipped[0]["reason"] for word in ("damaged in the zip", "Invalid data stream"))


@pytest.mark.parametrize("name", ["set.tar.gz", "set.tgz", "set"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_compressed_tar_is_told_of_also_where_it_is_cut_short(name, share, three, tmp_path):
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(three, ".")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="decompress it first"):
        prepared(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_captions_end_where_json_lines_do(mark, tmp_path):
    """Not at the other characters that Unicode has for it; and a byte order mark is none of theirs."""
    captions = {"0.png": "a\u2028b\u2029c\x85d", "1.png": "e"}
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in captions.items()]
    write(tmp_path / "in", **{name: png(noise(number)) for number, name in enumerate(captions)})
    write(tmp_path / "in", **{"metadata.jsonl": (mark + "\r\n".join(lines) + "\n").encode()})
    prepared(tmp_path / "in", tmp_path / "out")
    assert {header["name"]: header["caption"] for _, header in records(tmp_path / "out")} == captions


def test_a_set_with_files_that_are_gone_has_a_fingerprint(tmp_path, monkeypatch):
    """They are named when images are made of them."""
    monkeypatch.setattr(on_demand, "HELD", 0)
    write(tmp_path, **{f"{number}.png": png(noise(number)) for number in range(4)})
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    records = SOURCES["folder"](path=str(tmp_path), size=4, channels=3, test_share=0.5).split("train")
    assert len(records.fingerprint) == 64


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"records": "3"}'])
@pytest.mark.parametrize("which", ["note", "settings"])
def test_what_a_preparation_noted_and_something_changed(which, content, three, tmp_path):
    preparation = Preparation(Settings(source=three, output=tmp_path / "out", resolution=4))
    steps = preparation.run()
    for _ in range(4):
        next(steps)
    steps.close()
    noted, underway = sorted((tmp_path / "out").glob(".*_record.json")), tmp_path / "out" / ".preparation.json"
    (noted[0] if which == "note" else underway).write_text(content)
    with pytest.raises(UserError, match=r"begin anew|give another folder") as error:
        prepared(three, tmp_path / "out")
    assert "\n" not in str(error.value)
