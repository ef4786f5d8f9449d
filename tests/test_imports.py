"""What may import what. One table a kind; the imports are read from the source, so nothing hides in a function."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each room of the house, and what it may import from the house besides itself. A room is a module or a package; the
# longest name that fits a file is its room, and a name on the right allows all that is under it.
EVERYTHING_BUT_BUILD = (
    "errors typing rng sde denoiser augmented losses likelihood samplers oracles guidance models data training "
    "distributed evaluation pretrained checkpoint writers augmented_likelihood"
)
ALLOWED = {
    "__init__": "",
    "errors": "",
    "typing": "",
    "rng": "errors typing",
    "sde": "errors typing rng",
    "denoiser": "errors typing rng sde augmented",
    "augmented": "errors typing rng sde",
    "augmented_likelihood": "errors typing rng sde augmented",
    "losses": "errors typing rng sde denoiser augmented",
    "likelihood": "errors typing rng sde denoiser",
    "oracles": "errors typing rng sde denoiser",
    "samplers": "errors typing rng sde denoiser augmented",
    "guidance": "errors typing rng sde denoiser",
    "models": "errors typing rng",
    "data": "errors typing rng",
    "distributed": "errors",
    "writers": "errors typing",
    "checkpoint": "errors typing distributed",
    "training": "errors typing rng sde denoiser losses data distributed checkpoint writers",
    "evaluation": "errors typing rng data",
    # Extractors are networks: published ones are read, small ones trained, all are computed over the mesh.
    "evaluation.extractors": "errors typing data models pretrained distributed writers training.image_classifier "
    "evaluation.features evaluation.metrics evaluation.resize",
    "pretrained": "errors typing models",
    "experiment": EVERYTHING_BUT_BUILD,
    "schema": "errors training.duration",
    "command_line": "errors",
    "build": f"{EVERYTHING_BUT_BUILD} schema experiment",
}

# Packages from outside that have one place, and that place. Where a name is not here, anyone may import it.
PLACES = {
    "flax": "models",
    "orbax": "checkpoint",
    "tensorboardX": "writers",
    "ml_collections": "build",
    "diffrax": "sde",
    "optax": "training",
    "grain": "data",
    "sklearn": "data",
    "torch": "",
    "tensorflow": "",
    "tests": "",
    "configs": "",
    "main": "",
}

FILES = sorted(path for path in (ROOT / "score_sde").rglob("*.py"))


def _module(path):
    """`score_sde/sde/base.py` -> "sde.base", a package by its own name, the root "__init__"."""
    parts = path.relative_to(ROOT / "score_sde").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _imports(path):
    """The full dotted name of every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else node.module for name in inner)


def _under(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _room(module):
    return max((room for room in ALLOWED if _under(module, [room])), key=len, default=None)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_keep_their_direction(path):
    module = _module(path)
    room = _room(module)
    assert room, f"{module} is in no room of the table"
    for name in _imports(path):
        if not _under(name, ["score_sde"]):
            continue
        target = name.removeprefix("score_sde").removeprefix(".") or "__init__"
        assert _under(target, [room, *ALLOWED[room].split()]), f"{module} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_outside_packages_keep_their_place(path):
    for name in _imports(path):
        place = PLACES.get(name.split(".")[0])
        if place is not None:
            assert place, f"nothing in score_sde may import {name}"
            assert _under(_module(path), [place]), f"{name} is for {place} alone"


@pytest.mark.parametrize("name", ["environment", "slices"])
def test_what_of_the_distributed_imports_no_jax(name):
    """`environment` runs before jax is imported, to say how; `slices` is for launchers, on machines without it."""
    path = ROOT / "score_sde" / "distributed" / f"{name}.py"
    assert not [name for name in _imports(path) if _under(name, ["jax", "score_sde.distributed", "numpy"])]


def test_configs_are_data_and_main_is_thin():
    for path in (ROOT / "configs").rglob("*.py"):
        # That which reads another project's config needs its names, and to say what it does not know.
        translates = (
            ["score_sde.pretrained", "score_sde.errors"] if path == ROOT / "configs" / "score_sde_pytorch.py" else []
        )
        own = [name for name in _imports(path) if name.split(".")[0] not in sys.stdlib_module_names]
        assert all(_under(name, ["ml_collections", "configs", *translates]) for name in own), path
    assert len((ROOT / "main.py").read_text(encoding="utf-8").splitlines()) < 80
    allowed = [
        "build",
        "command_line",
        "experiment",
        "errors",
        "distributed",
        "training.interrupt",
        "training.loop",
    ]
    names = [name.removeprefix("score_sde.") for name in _imports(ROOT / "main.py") if _under(name, ["score_sde"])]
    assert all(_under(name, allowed) for name in names)


def test_every_module_imports_and_no_other_framework_comes_along():
    modules = ["score_sde" if m == "__init__" else f"score_sde.{m}" for m in map(_module, FILES)]
    first = "score_sde.distributed.environment"
    program = f"""
import importlib, sys
importlib.import_module("{first}").prepare()
for module in {modules!r}:
    importlib.import_module(module)
assert len([name for name in sys.modules if name.startswith("score_sde")]) >= {len(modules)}
print([name for name in ("torch", "tensorflow") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "[]"
