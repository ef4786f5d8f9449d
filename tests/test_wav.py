"""Sounds in WAV files: cut into segments of which nothing is left out, and refused in one line where damaged."""

import pickle
import struct

import numpy as np
import pytest

from score_sde.data import SOURCES, on_demand, whole
from tests.sources import refused, wav

RANDOM = np.random.default_rng(0)


def riff(content, tag=1, bits=16, frame=2, guid="", whole=None, data=None, before=b""):
    """A file of 8,000 samples a second. whole, data: what it says of its lengths. guid: a subformat's, without
    the number of the plain format that it begins with."""
    form = struct.pack("<HHIIHH", 0xFFFE if guid else tag, 1, 8000, 16000, frame, bits)
    if guid:
        form += struct.pack("<HHIH", 22, bits, 4, tag) + bytes.fromhex(guid)
    chunk = lambda name, body, length: name + struct.pack("<I", len(body) if length is None else length) + body
    return chunk(b"RIFF", b"WAVE" + chunk(b"fmt ", form, None) + before + chunk(b"data", content, data), whole)


class TestWAV:
    def source(self, root, **settings):
        return SOURCES["wav"](folder=str(root), **{"length": 100, "rate": 8000, **settings})

    def test_segments_leave_nothing_out(self, tmp_path):
        """250 samples make two and one aligned to the end, 200 two, 30 one with silence after it."""
        sounds = {name: RANDOM.integers(-(2**15), 2**15, (n, 2)) for name, n in (("a", 250), ("b", 200), ("c", 30))}
        for name, sound in sounds.items():
            wav(tmp_path / "x" / f"{name}.wav", sound)
        source = self.source(tmp_path, channels=2, test_share=0.3)
        assert (source.shape, source.levels) == ((100, 2), 65536)
        a, b, c = (sounds[name] + 2**15 for name in "abc")
        silent = np.concatenate([c, np.full((70, 2), 2**15)])
        expected = [a[:100], a[100:200], a[150:], b[:100], b[100:], silent]
        got = np.concatenate([whole(source.split(name), "image") for name in ("train", "test")])
        assert got.dtype == np.uint16
        assert sorted(map(bytes, got)) == sorted(bytes(each.astype(np.uint16)) for each in expected)

    @pytest.mark.parametrize(("width", "levels"), [(1, 256), (2, 2**16), (3, 2**24), (4, 2**32)])
    def test_bits(self, width, levels, tmp_path):
        """Each value is a place in [−1, 1), of which the level is the nearest there is."""
        stored = (
            RANDOM.integers(0, levels, (100, 1)) if width == 1 else RANDOM.integers(-levels // 2, levels // 2, (100, 1))
        )
        for name in "ab":
            wav(tmp_path / f"{name}.wav", stored, width=width)
        got = whole(self.source(tmp_path).split("train"), "image")[0].astype(np.float64)
        exact = (stored / levels + (0 if width == 1 else 0.5)) * 65536
        assert np.abs(got - np.minimum(exact, 65535)).max() <= (0 if width <= 2 else 0.5)

    @pytest.mark.parametrize("width", [1, 2, 3, 4])
    def test_silence_is_the_same_level_whatever_the_bits(self, width, tmp_path):
        """Stored, and where a file is shorter than a segment."""
        for name in "ab":
            wav(tmp_path / f"{name}.wav", np.full((60, 1), 128 if width == 1 else 0), width=width)
        assert (whole(self.source(tmp_path).split("train"), "image") == 2**15).all()

    @pytest.mark.parametrize(
        "told",
        [
            {"whole": 0},
            {"whole": 60},
            {"whole": 2**32 - 1, "data": 2**32 - 1},  # ffmpeg into a pipe
            {"whole": 0x7FFFF024, "data": 0x7FFFF000},  # SoX
            {"guid": "000000001000800000aa00389b71"},
            {"before": b"LIST" + (5).to_bytes(4, "little") + b"notes\0"},
        ],
    )
    def test_headers(self, told, tmp_path):
        """By hand, as Microsoft describes them: lengths of writers that could not know them, other chunks before the
        data, and WAVE_FORMAT_EXTENSIBLE."""
        values = RANDOM.integers(-(2**15), 2**15, (150, 1))
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "a.wav").write_bytes(riff(values.astype("<i2").tobytes(), **told))
        wav(tmp_path / "test" / "b.wav", values)
        source = self.source(tmp_path)
        np.testing.assert_array_equal(*(whole(source.split(part), "image") for part in ("train", "test")))
        np.testing.assert_array_equal(source.split("train").gather(np.array([1]))["image"][0], values[50:] + 2**15)

    def test_labels_and_parts(self, tmp_path):
        for part, count in (("train", 4), ("test", 2)):
            for n in range(count):
                wav(tmp_path / part / "uv"[n % 2] / f"{n}.wav", np.full((150, 1), n + 10 * (n % 2)))
        source = self.source(tmp_path, classes=2)
        for name, count in (("train", 4), ("test", 2)):
            batch = source.split(name).gather(np.arange(2 * count))
            np.testing.assert_array_equal(batch["label"], (batch["image"][:, 0, 0] - 2**15) >= 10)

    def test_on_demand_is_alike(self, tmp_path, monkeypatch):
        for n in range(3):
            wav(tmp_path / f"{n}.wav", RANDOM.integers(-(2**15), 2**15, (130, 1)))
        held = self.source(tmp_path).split("train")
        monkeypatch.setattr(on_demand, "HELD", 0)
        read = pickle.loads(pickle.dumps(self.source(tmp_path).split("train")))
        np.testing.assert_array_equal(whole(held, "image"), whole(read, "image"))
        assert read.fingerprint == self.source(tmp_path).split("train").fingerprint

    def test_mistakes(self, tmp_path):
        refused(self.source(""), "set data.source=wav:FOLDER")
        refused(self.source(tmp_path / "none"), "is no folder")
        refused(self.source(tmp_path), "no file in", ".wav")
        good = np.zeros((200, 1), int)
        wav(tmp_path / "good.wav", good)
        wav(tmp_path / "good too.wav", good)
        cases = {
            "rate": (lambda path: wav(path, good, rate=44100), "it has 44100 samples a second, data.rate=8000"),
            "stereo": (lambda path: wav(path, np.zeros((200, 2), int)), "it has 2 channels, data.channels=1"),
            "text": (lambda path: path.write_bytes(b"text"), "no WAV file of linear PCM"),
            "nothing": (lambda path: path.write_bytes(b""), "no WAV file of linear PCM: it has no bytes"),
            "floats": (lambda path: path.write_bytes(riff(b"", tag=3)), "linear PCM: its format is floats"),
            "wide": (lambda path: path.write_bytes(riff(b"", bits=40)), "it has 40 bits a sample"),
            "padded": (lambda path: path.write_bytes(riff(b"", bits=24, frame=4)), "4 bytes for a sample of 1"),
            "none": (lambda path: path.write_bytes(riff(b"")[:36]), "linear PCM: it ends before its data"),
            "no format": (lambda path: path.write_bytes(riff(b"")[:12] + riff(b"")[36:]), "nothing before its data"),
            "other": (lambda path: path.write_bytes(riff(b"", guid="00002107d3118644c8c1ca000000")), "is number 65534"),
            "empty": (lambda path: wav(path, good[:0]), "it is empty"),
            "cut": (lambda path: path.write_bytes((tmp_path / "good.wav").read_bytes()[:-50]), "it is cut short"),
        }
        for name, (make, word) in cases.items():
            path = tmp_path / "train" / f"{name}.wav"
            path.parent.mkdir(exist_ok=True)
            make(path)
            wav(tmp_path / "test" / "t.wav", good)
            refused(self.source(tmp_path), f"{name}.wav: ", word)
            path.unlink()
