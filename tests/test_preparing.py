"""scripts/prepare_dataset: what it reads and refuses, that damage is named, and that it goes on where it was."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import SOURCES
from score_sde.data.image_records import MANIFEST, Manifest, checksum, decode, decode_header, encode
from score_sde.data.preparation import Preparation, Settings
from score_sde.errors import RunFailed, UserError
from tests import program
from tests.preparing import noise, png, prepared, records, write
from tests.sources import both, refused

SCRIPT = program.ROOT / "scripts" / "prepare_dataset"
FILES, DAMAGED = 2000, 10


def command(source, output, *options):
    return [sys.executable, str(SCRIPT), str(source), str(output), *options]


def run_script(source, output, *options):
    return subprocess.run(command(source, output, *options), capture_output=True, text=True, timeout=200, check=False)


def spoilt(content: bytes) -> list[bytes]:
    """Ten ways in which a PNG may be damaged."""
    changed = lambda place: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    cut = [content[: len(content) // 2], content[:-20], content[:-5], content[:8], content[:40]]
    return [b"", b"this is no picture", b"\0" * len(content), changed(0), changed(len(content) // 2), *cut]


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """2,000 PNGs in two classes, of which 10 are damaged."""

    def make(path: Path) -> None:
        for number in range(FILES):
            content = png(noise(number, 10, 12))
            if number % 200 == 77:
                content = spoilt(content)[number // 200]
            write(path, **{f"{'dog' if number % 3 else 'cat'}/nested/{number:04d}.png": content})

    return program.shared(tmp_path_factory, "pngs", make)


def damaged_names():
    return sorted(f"{'dog' if n % 3 else 'cat'}/nested/{n:04d}.png" for n in range(77, FILES, 200))


@pytest.fixture(scope="session")
def undisturbed(source, tmp_path_factory) -> Path:
    def make(path: Path) -> None:
        done = run_script(source, path, "--resolution=10", "--processes=3")
        assert done.returncode == 0, done.stderr
        named = sorted(line.split(": ")[2] for line in done.stdout.splitlines() if "prepare: damaged:" in line)
        assert named == damaged_names()
        assert f"1990 images of 10x10x3 in 8 shards, 2 classes, {DAMAGED} damaged files left out" in done.stdout

    return program.shared(tmp_path_factory, "prepared", make)


class TestManyFilesOfWhichSomeAreDamaged:
    def test_each_damaged_file_is_named_and_each_other_is_a_record(self, undisturbed):
        manifest = Manifest.read(undisturbed)
        assert sorted(each["name"] for each in manifest.skipped) == damaged_names()
        assert manifest.records == sum(shard.records for shard in manifest.shards) == FILES - DAMAGED
        assert manifest.classes == ["cat", "dog"]
        found = records(undisturbed)
        expected = [n for n in [*range(0, FILES, 3), *(n for n in range(FILES) if n % 3)] if n % 200 != 77]
        assert [int(header["name"][-8:-4]) for _, header in found] == expected
        for (image, header), number in zip(found, expected, strict=True):
            np.testing.assert_array_equal(image, noise(number, 10, 12)[:, 1:-1])
            assert (header["label"], header["caption"]) == (int(number % 3 > 0), None)

    def test_the_manifest_says_what_is_there(self, undisturbed):
        manifest, found = Manifest.read(undisturbed), records(undisturbed)
        values = np.stack([image for image, _ in found]) / 255
        np.testing.assert_allclose(manifest.mean, values.mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(manifest.deviation, values.std(axis=(0, 1, 2)), rtol=1e-12)
        labels = [header["label"] for _, header in found]
        assert manifest.histogram == [labels.count(0), labels.count(1)]
        manifest.check(undisturbed)
        assert {each.name for each in undisturbed.iterdir()} == {MANIFEST, *(each.file for each in manifest.shards)}

    def test_a_second_run_does_nothing(self, source, undisturbed):
        before = program.snapshot(undisturbed)
        done = run_script(source, undisturbed, "--resolution=10")
        assert done.returncode == 0
        assert "nothing to do" in done.stdout
        assert program.snapshot(undisturbed) == before

    def test_the_number_of_processes_changes_nothing(self, source, undisturbed, tmp_path):
        assert run_script(source, tmp_path / "out", "--resolution=10", "--processes=1").returncode == 0
        assert (tmp_path / "out" / MANIFEST).read_bytes() == (undisturbed / MANIFEST).read_bytes()

    def test_killed_at_three_places_and_gone_on_with(self, source, undisturbed, tmp_path):
        output = tmp_path / "out"
        for shards in (1, 3, 6):
            with subprocess.Popen(
                command(source, output, "--resolution=10", "--processes=2"), stdout=subprocess.DEVNULL
            ) as process:
                program.wait_for(lambda least=shards: len([*output.glob("images-*.array_record")]) >= least, process)
                process.kill()
            kept = {path: path.stat().st_mtime_ns for path in sorted(output.glob("images-*.array_record"))[:-1]}
            assert not (output / MANIFEST).exists()
        done = run_script(source, output, "--resolution=10")
        assert done.returncode == 0, done.stderr
        assert "going on; " in done.stdout
        assert all(f"damaged: {name}" in done.stdout for name in damaged_names())
        assert {path: path.stat().st_mtime_ns for path in kept} == kept  # but for the last, which may lack its note
        assert (output / MANIFEST).read_bytes() == (undisturbed / MANIFEST).read_bytes()
        Manifest.read(output).check(output)
        assert {each.name for each in output.iterdir()} == {each.name for each in undisturbed.iterdir()}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_to_the_group_stops_it_and_it_goes_on(self, number, source, undisturbed, tmp_path):
        output = tmp_path / "out"
        with subprocess.Popen(
            command(source, output, "--resolution=10", "--processes=2"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            program.wait_for(lambda: any(output.glob("images-*.array_record")), process)
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert "the same command goes on" in said
        assert "Traceback" not in said
        assert run_script(source, output, "--resolution=10").returncode == 0
        assert (output / MANIFEST).read_bytes() == (undisturbed / MANIFEST).read_bytes()

    def test_too_many_damaged_files_stop_it_and_are_named(self, source, undisturbed, tmp_path):
        done = run_script(source, tmp_path / "out", "--resolution=10", "--max-damaged=0.003")
        assert done.returncode == 1
        assert "error: 7 files are damaged, more than 0.003 of all 2000" in done.stderr
        named = [line.split(": ")[2] for line in done.stdout.splitlines() if "damaged:" in line]
        assert len(named) == 7
        assert set(named) < set(damaged_names())
        again = run_script(source, tmp_path / "out", "--resolution=10")
        assert again.returncode == 0
        assert (tmp_path / "out" / MANIFEST).read_bytes() == (undisturbed / MANIFEST).read_bytes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"resolution": 8}, "resolution is 10 there and 8 here"),
            ({"resampling": "lanczos"}, "resampling is area there and lanczos here"),
            ({"labels": False}, "was made of other files, or they have changed"),
            ({"shards": 3}, "shards is 8 there and 3 here"),
        ],
    )
    def test_other_settings_in_the_same_folder(self, options, message, source, undisturbed):
        settings = {"resolution": 10, **options}
        with pytest.raises(UserError, match=message):
            Preparation(Settings(source=source, output=undisturbed, **settings))


@pytest.fixture
def three(tmp_path) -> Path:
    return write(tmp_path / "three", **{f"{n}.png": png(noise(n)) for n in range(3)})


def test_another_source_in_the_same_folder(three, tmp_path):
    prepared(three, tmp_path / "out")
    write(three, **{"1.png": png(noise(8, 5, 4))})
    with pytest.raises(UserError, match="other files, or they have changed"):
        prepared(three, tmp_path / "out")


def test_a_changed_shard_is_found(three, tmp_path):
    manifest = prepared(three, tmp_path / "out")
    path = tmp_path / "out" / manifest.shards[1].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"00001-of-00003\.array_record is not as manifest\.json says"):
        prepared(three, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        prepared(three, tmp_path / "out")


def test_a_set_that_is_not_whole_is_not_read(three, tmp_path):
    """Not finished, or with a shard missing; a pattern of those that are there is what it says."""
    out, named = tmp_path / "out", lambda pattern: SOURCES["array_record"](pattern=str(pattern), size=4)
    with contextlib.closing(Preparation(Settings(source=three, output=out, resolution=4, shards=3)).run()) as steps:
        while not list(out.glob("*.array_record")):
            next(steps)
    for pattern in (out, out / "*.array_record"):
        refused(named(pattern), "is not finished", "scripts/prepare_dataset")
    prepared(three, out, shards=3)
    assert len(both(named(out))) == 3
    (out / "images-00001-of-00003.array_record").unlink()
    refused(named(out), "lacks images-00001-of-00003.array_record, which manifest.json names")
    assert len(both(named(out / "*.array_record"))) == 2


def test_a_shard_that_changed_before_the_end_is_made_again(three, tmp_path):
    whole = prepared(three, tmp_path / "whole")
    preparation = Preparation(Settings(source=three, output=tmp_path / "out", resolution=4))
    steps = preparation.run()
    for _ in range(4):
        next(steps)
    steps.close()
    first = tmp_path / "out" / whole.shards[0].file
    first.write_bytes(b"changed")
    assert prepared(three, tmp_path / "out") == whole
    assert checksum(first) == whole.shards[0].sha256


def test_two_runs_at_once(three, tmp_path):
    settings = Settings(source=three, output=tmp_path / "out", resolution=4)
    steps = Preparation(settings).run()
    next(steps)
    with pytest.raises(UserError, match="being prepared by another run"):
        list(Preparation(settings).run())
    steps.close()
    list(Preparation(settings).run())


def test_labels_and_captions_of_hugging_faces_image_folders(tmp_path):
    lines = [
        {"file_name": "a.png", "text": "a red châtelaine", "label": "x"},
        {"file_name": "b/c.png", "text": "two", "label": "w"},
    ]
    folder = write(tmp_path / "in", **{"a.png": png(noise(0)), "b/c.png": png(noise(1)), "notes.txt": b"read me"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = prepared(folder, tmp_path / "out")
    assert (manifest.classes, manifest.histogram) == (["w", "x"], [1, 1])
    headers = [header for _, header in records(tmp_path / "out")]
    assert headers == [
        {"label": 1, "caption": "a red châtelaine", "name": "a.png"},
        {"label": 0, "caption": "two", "name": "b/c.png"},
    ]
    assert Preparation(Settings(source=folder, output=tmp_path / "out", resolution=4)).others == ["notes.txt"]


def test_the_zip_of_edm_and_stylegan(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(("00000/a.png", "00000/b.png", "00001/c.png")):
            archive.writestr(name, png(noise(number)))
        archive.writestr(
            "dataset.json", json.dumps({"labels": [["00000/a.png", 2], ["00000/b.png", 0], ["00001/c.png", 2]]})
        )
    manifest = prepared(tmp_path / "set.zip", tmp_path / "out")
    assert (manifest.classes, manifest.histogram) == (["0", "1", "2"], [1, 0, 2])
    assert [header["label"] for _, header in records(tmp_path / "out")] == [2, 0, 2]
    unlabelled = prepared(tmp_path / "set.zip", tmp_path / "without", labels=False)
    assert (unlabelled.classes, unlabelled.histogram) == (None, [])


def test_a_part_has_the_classes_of_both(tmp_path):
    names = ("train/b/1.png", "train/c/2.png", "test/a/3.png", "test/b/4.png", "train/c/5.png")
    folder = write(tmp_path / "in", **{name: png(noise(n)) for n, name in enumerate(names)})
    with pytest.raises(UserError, match="choose one by --part=train or --part=test"):
        prepared(folder, tmp_path / "out")
    train, test = (prepared(folder, tmp_path / part, part=part) for part in ("train", "test"))
    assert train.classes == test.classes == ["a", "b", "c"]
    assert (train.histogram, test.histogram) == ([0, 1, 2], [1, 1, 0])


def one_colour(mode: str, colour, **options) -> bytes:
    content = io.BytesIO()
    Image.new(mode, (8, 8), colour).save(content, options.pop("format", "PNG"), **options)
    return content.getvalue()


def test_odd_images(tmp_path):
    """As `decoding` documents them, in known colours; area means over whole squares are exact."""
    two = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    animation = io.BytesIO()
    two[0].save(animation, "GIF", save_all=True, append_images=two[1:])
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 257 * 99 + 128, np.uint16)).save(deep, "PNG")
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 200, 30])
    indexed = io.BytesIO()
    palette.save(indexed, "PNG")
    files = {
        "alpha.png": (one_colour("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        "animated.gif": (animation.getvalue(), (255, 0, 0)),
        "cmyk.jpg": (one_colour("CMYK", (0, 0, 0, 0), format="JPEG"), (255, 255, 255)),
        "deep.png": (deep.getvalue(), (99, 99, 99)),
        "palette.png": (indexed.getvalue(), (10, 200, 30)),
    }
    folder = write(tmp_path / "in", **{name: content for name, (content, _) in files.items()})
    manifest = prepared(folder, tmp_path / "out")
    assert manifest.records == len(files)
    for image, header in records(tmp_path / "out"):
        np.testing.assert_array_equal(image, np.broadcast_to(files[header["name"]][1], (4, 4, 3)))


def test_the_central_square_is_resized_by_area(tmp_path):
    image = noise(0, 8, 11)
    manifest = prepared(write(tmp_path / "in", **{"a.png": png(image)}), tmp_path / "out")
    means = image[:, 1:9].reshape(4, 2, 4, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_array_equal(records(tmp_path / "out")[0][0], np.rint(means))
    assert manifest.enlarged == 0
    assert prepared(tmp_path / "in", tmp_path / "large", 16).enlarged == 1
    assert prepared(tmp_path / "in", tmp_path / "grey", channels=1).channels == 1
    assert records(tmp_path / "grey")[0][0].shape == (4, 4, 1)


def test_all_are_damaged(tmp_path):
    folder = write(tmp_path / "in", **{"a.png": b"x", "b.png": b"y"})
    with pytest.raises(RunFailed, match=r"all 2 files .* are damaged"):
        prepared(folder, tmp_path / "out", max_damaged=1.0)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_shard_may_be_without_records(tmp_path):
    folder = write(tmp_path / "in", **{"a.png": b"x", "b.png": png(noise(0))})
    manifest = prepared(folder, tmp_path / "out", max_damaged=0.5)
    assert [shard.records for shard in manifest.shards] == [0, 1]
    assert len(records(tmp_path / "out")) == 1


def _sources(folder: Path) -> dict[str, Path]:
    """What cannot be prepared."""
    write(folder / "none", **{"a.txt": b"x"})
    write(folder / "labelled", **{"a.png": png(noise(0)), "labels.json": b'{"labels": [["b.png", 0]]}'})
    write(folder / "negative", **{"a.png": png(noise(0)), "labels.json": b'{"labels": [["a.png", -1]]}'})
    write(folder / "huge", **{"a.png": png(noise(0)), "labels.json": b'{"labels": [["a.png", 2000000]]}'})
    write(folder, **{"text.zip": b"PK is no zip", "short.tar": b"x" * 100})
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as archive:
        archive.add(folder / "none" / "a.txt", "a.png")
    return {name: folder / name for name in os.listdir(folder)} | {"absent": folder / "absent"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "there is no"),
        ("none", "no file in"),
        ("labelled", "not among the 1 files"),
        ("negative", "must be a number from 0"),
        ("huge", "label 2000000"),
        ("text.zip", "neither a folder nor a zip"),
        ("short.tar", "cannot be read"),
        ("packed.tar.gz", "decompress it first"),
    ],
)
def test_sources_that_are_refused(name, message, tmp_path):
    source = _sources(tmp_path / "in")[name]
    with pytest.raises(UserError, match=message) as error:
        prepared(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resolution=0",), "--resolution must lie in"),
        (("--resolution=4", "--channels=2"), "--channels must be 1 or 3"),
        (("--resolution=4", "--resampling=nearest"), "unknown --resampling 'nearest'"),
        (("--resolution=4", "--part=train"), "no folders train/ and test/"),
        (("--resolution=4", "--name=a/b"), "--name must be of letters"),
        (("--resolution=4", "--max-damaged=2", "--processes=0"), "--processes must lie in"),
        (("--resolution=four",), "invalid int value"),
        ((), "required: --resolution"),
    ],
)
def test_bad_flags_are_told_in_one_line(options, message, three, tmp_path):
    done = run_script(three, tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_something_else(three, tmp_path):
    write(tmp_path, **{"full/a": b"", "file": b""})
    for name, message in (("full", "is not empty"), ("file", "it is no folder")):
        with pytest.raises(UserError, match=message):
            prepared(three, tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]


class TestRecords:
    def test_there_and_back(self):
        for image in (noise(0), noise(1)[..., :1]):
            found, header = decode(encode(image, label=3, caption="ein Fuß", name="a/b.png"))
            np.testing.assert_array_equal(found, image)
            assert header == {"label": 3, "caption": "ein Fuß", "name": "a/b.png"}

    def test_the_layout(self):
        """By hand, as the module's docstring gives it."""
        record = encode(noise(0), label=None, caption=None, name="n")
        length = int.from_bytes(record[:4], "little")
        assert json.loads(record[4 : 4 + length]) == {"label": None, "caption": None, "name": "n"}
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record[4 + length :]))), noise(0))

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: b"",
            lambda record: record[:30],
            lambda record: b"\xff" + record[1:],
            lambda record: record[:4] + b"[" + record[5:],
            lambda record: record[:-30],
        ],
    )
    def test_damage(self, change):
        with pytest.raises(ValueError, match=r"is damaged"):
            decode(change(encode(noise(0, 16, 16), label=1, caption=None, name="n")))

    def test_a_header_of_other_keys(self):
        with pytest.raises(ValueError, match="must name label"):
            decode_header((2).to_bytes(4, "little") + b"{}")


class TestManifest:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda values: "{", "cannot be read"),
            (lambda values: "[]", "of format None"),
            (lambda values: json.dumps({**values, "format": "other 2"}), "of format 'other 2'"),
            (lambda values: json.dumps({k: v for k, v in values.items() if k != "mean"}), "lacks"),
            (lambda values: json.dumps({**values, "records": 7}), "contradicts itself"),
            (lambda values: json.dumps({**values, "resolution": "8"}), "'8' is no whole number"),
        ],
    )
    def test_damage(self, change, message, three, tmp_path):
        manifest = prepared(three, tmp_path / "out")
        (tmp_path / "out" / MANIFEST).write_text(change(manifest.plain()))
        with pytest.raises(UserError, match=message):
            Manifest.read(tmp_path / "out")

    def test_none(self, tmp_path):
        with pytest.raises(UserError, match="scripts/prepare_dataset makes such folders"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize("cores", [1, 256, 384])
def test_as_many_processes_as_cores_but_no_more_than_are_taken(cores, three, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(three), str(tmp_path / "out"), "--resolution=4"])
    flags = runpy.run_path(str(SCRIPT))["arguments"]()
    assert Settings(**vars(flags)).processes == min(cores, 256)


def test_help():
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--max-damaged" in done.stdout
