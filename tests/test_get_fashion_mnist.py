"""scripts/get_fashion_mnist, with a Debian package of four small files in place of the real one."""

import hashlib
import importlib.machinery
import importlib.util
import io
import tarfile

import pytest

from score_sde.data import fashion_mnist
from tests import program

FILES = {name: name.encode() for part in fashion_mnist.FILES.values() for name in part}


@pytest.fixture
def script(monkeypatch):
    loader = importlib.machinery.SourceFileLoader("get", str(program.ROOT / "scripts" / "get_fashion_mnist"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("get", loader))
    loader.exec_module(module)
    assert set(module.SHA256) == set(FILES)  # what the source looks for
    monkeypatch.setattr(module, "SHA256", {name: hashlib.sha256(each).hexdigest() for name, each in FILES.items()})
    return module


def package(files, compression="xz"):
    """An `ar` of data.tar, as dpkg-deb makes it."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/share/datasets/fashion-mnist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    result = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{compression}", tar.getvalue()),
    ):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        result += header + content + b"\n" * (len(content) % 2)
    return result


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_unpacks_where_the_source_looks(script, compression, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(script, "by_apt", lambda: None)
    monkeypatch.setattr(script, "by_mirror", lambda: package(FILES, compression))
    assert script.main([]) == 0
    folder = fashion_mnist.fetched()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    before = program.snapshot(tmp_path)
    monkeypatch.setattr(script, "by_mirror", lambda: pytest.fail("there is nothing to fetch"))
    assert script.main([]) == 0
    assert program.snapshot(tmp_path) == before
    assert "are there" in capsys.readouterr().out


BAD = {
    "no package": (lambda: b"<html>", "no Debian package"),
    "cut short": (lambda: package(FILES)[:-100], "damaged"),
    "cut in a header": (lambda: package(FILES)[:90], "holds no data.tar"),
    "another file": (lambda: package({**FILES, "t10k-labels-idx1-ubyte.gz": b"x"}), "t10k-labels-idx1-ubyte.gz"),
    "a file less": (lambda: package({name: each for name, each in FILES.items() if "t10k" in name}), "missing, or not"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_packages(script, case, tmp_path, monkeypatch, capsys):
    make, words = BAD[case]
    monkeypatch.setattr(script, "by_apt", make)
    assert script.main([str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(script, capsys):
    assert script.main(["--where=x"]) == 2
    assert script.main(["--help"]) == 0
    assert "scripts/get_fashion_mnist [DIR]" in capsys.readouterr().out
