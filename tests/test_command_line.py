"""Bad flags, config files and workdirs: one line that says what is wrong, status 2, nothing changed; see `refuse`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests import program

TOO_LONG = "x" * 300  # longer than a file name may be


def test_compilations_are_counted(compilations):
    jax.jit(lambda x: x * 3 + len(compilations))(1.0)
    assert compilations


def test_bad_flags(tmp_path, refuse):
    workdir, config = f"--workdir={tmp_path / 'new'}", f"--config={program.CONFIG}"
    for arguments, parts in [
        ([config, workdir, "--mode=smaple"], ["unknown mode 'smaple'", "did you mean 'sample'"]),
        ([config, workdir, "--mod=sample"], ["unknown flag --mod", "--mode"]),
        ([config, workdir, "--verbose"], ["unknown flag --verbose", "--workdir"]),
        ([config, workdir, "stray"], ["unknown flag stray"]),
        ([config, workdir, "--config.seed"], ["--config.seed needs a value"]),
        ([config, workdir, "--mode"], ["--mode"]),
        ([config], ["--workdir is missing"]),
        ([config, "--workdir="], ["--workdir is missing"]),
        ([workdir], ["--config is missing"]),
        ([], ["--config is missing"]),
        ([workdir, "--config=configs/digit.py"], ["no file configs/digit.py", "did you mean configs/digits.py"]),
        ([workdir, f"--config={program.CONFIG}:vq"], ["ValueError", "'vq'", "vp, subvp, ve"]),
        ([workdir, f"--config={tmp_path}"], ["there is no file"]),
        ([workdir, f"--config={program.ROOT / 'pyproject.toml'}"], ["not a Python file"]),
    ]:
        line = refuse(arguments, tmp_path)
        for part in parts:
            assert part in line, (arguments, line)


GOOD = (
    "from ml_collections import ConfigDict\ndef get_config():\n    config = ConfigDict()\n    {}\n    return config\n"
)
CONFIG_FILES = {
    "raises": ("def get_config():\n    return 1 / 0\n", ["ZeroDivisionError"]),
    "raises on several lines": ("raise RuntimeError('first\\nsecond')\n", ["RuntimeError: first second"]),
    "no syntax": ("def get_config(:\n", ["SyntaxError"]),
    "no get_config": ("x = 1\n", ["AttributeError", "get_config"]),
    "missing import": ("import no_such_module_at_all\n", ["ModuleNotFoundError", "no_such_module_at_all"]),
    "returns nothing": ("def get_config():\n    pass\n", ["must return a ConfigDict, not NoneType"]),
    "unknown section": (GOOD.format("config.trainin = ConfigDict({'a': 1})"), ["trainin", "'training'"]),
    "section that is none": (GOOD.format("config.training = 3"), ["training must be a section of named keys, not 3"]),
    "sampler that is no section": (GOOD.format("config.samplers = ConfigDict({'pc': 3})"), ["samplers.pc", "3"]),
    "name that is none": (GOOD.format("config.sde = ConfigDict({'name': ['vp']})"), ["sde.name", "vp"]),
    "nothing chosen": (GOOD.format("pass"), ["data.source", "digits", "sde.name", "model.name", "ncsnpp"]),
    "wrong type": (GOOD.format("config.seed = '3'"), ["seed: must be an integer, not '3'"]),
    "key left open": (
        "from ml_collections import config_dict\n" + GOOD.format("config.seed = config_dict.placeholder(int)"),
        ["seed"],
    ),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_bad_config_file(name, tmp_path, refuse):
    text, parts = CONFIG_FILES[name]
    path = tmp_path / "config.py"
    path.write_text(text)
    (tmp_path / "__pycache__").mkdir()  # importing the file may write there; that is no change of the workdir
    workdir = tmp_path / "runs" / "new"
    (tmp_path / "runs").mkdir()
    line = refuse(program.flags(workdir, "train", config=path), tmp_path / "runs")
    for part in parts:
        assert part in line


def test_bad_workdir(tmp_path, refuse):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "x", file / "x" / "y", tmp_path / TOO_LONG):
        line = refuse(program.flags(path, "train", *program.TINY), tmp_path)
        assert "--workdir=" in line


@pytest.mark.parametrize(
    ("mode", "setting"),
    [
        ("statistics", "evaluation.statistics"),
        *(("evaluate", f"evaluation.{key}") for key in ("statistics", "images", "reference")),
        ("evaluate", "extractors.inception.file"),
        *(("train", f"data.source={name}:") for name in ("folder", "idx", "fashion_mnist", "array_record", "npz")),
    ],
)
def test_a_name_too_long(mode, setting, tmp_path, refuse):
    flag = f"--config.{setting}{TOO_LONG}" if setting.endswith(":") else f"--config.{setting}={TOO_LONG}"
    looking = ("--config.evaluation.extractors=inception",) if "inception" in setting else ()
    line = refuse(program.flags(tmp_path / "new", mode, *program.TINY, *looking, flag), tmp_path)
    assert "File name too long" in line


def test_a_file_where_an_evaluation_keeps_its_work(workdir, capsys):
    folder = workdir / "reports" / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("mine")
    more = ("--config.sampling.num_samples=32",)  # another evaluation than that which is there
    assert program.main(program.flags(workdir, "evaluate", *program.FINISHED, *more)) == 2
    assert capsys.readouterr().err == f"error: {folder}: File exists\n"


@pytest.mark.parametrize("mode", ["sample", "evaluate", "likelihood"])
def test_no_checkpoint(mode, tmp_path, refuse):
    new, empty = tmp_path / "new", tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    line = refuse(program.flags(new, mode, *program.TINY), tmp_path)
    assert "--mode=train first" in line
    # The same where training was begun and killed before its first checkpoint.
    (empty / "config.json").write_text(json.dumps(program.experiment(empty, *program.TINY).config))
    line = refuse(program.flags(empty, mode, *program.TINY), tmp_path)
    assert "no checkpoint in" in line
    assert "--mode=train first" in line


@pytest.mark.parametrize("mode", ["all", "train", "sample", "evaluate", "likelihood"])
def test_workdir_of_another_config(mode, workdir, tmp_path, refuse):
    other = ("--config.sde.beta_max=19.5", "--config.training.batch_size=32")
    line = refuse(program.flags(workdir, mode, *program.FINISHED, *other), tmp_path)
    assert "is of another config" in line
    assert "sde.beta_max is 20.0 there and 19.5 here" in line
    assert "training.batch_size is 16 there and 32 here" in line


@pytest.mark.parametrize("mode", ["all", "train", "sample"])
def test_checkpoint_that_does_not_fit(mode, workdir, tmp_path, refuse):
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["channels"] = 12
    (workdir / "config.json").write_text(json.dumps(config))
    other = "--config.model.channels=12"
    line = refuse(program.flags(workdir, mode, *program.FINISHED, other), tmp_path)
    assert "does not fit the config" in line
    assert "conv_in.bias is (8,) in the checkpoint and (12,) by the config" in line


def test_config_json_that_is_damaged(workdir, tmp_path, refuse):
    for text in ('{"seed": 0', "[]", "3", '{"seed": 0, "sde": null}'):
        (workdir / "config.json").write_text(text)
        line = refuse(program.flags(workdir, "sample", *program.FINISHED), tmp_path)
        assert "config" in line


def test_workdir_with_a_file_for_a_directory(finished, tmp_path, refuse):
    workdir = tmp_path / "copy"
    workdir.mkdir()
    shutil.copy(finished / "config.json", workdir)
    (workdir / "checkpoints").write_text("not a directory")
    refuse(program.flags(workdir, "train", *program.FINISHED), tmp_path)


def test_evaluation_of_one_sample(workdir, tmp_path, refuse):
    """The Fréchet distance needs two."""
    one = "--config.sampling.num_samples=1"
    line = refuse(program.flags(workdir, "evaluate", *program.FINISHED, one), tmp_path)
    assert "num_samples" in line


REAL = {
    "mode": lambda tmp: program.flags(tmp / "new", "evalute"),
    "keys": lambda tmp: program.flags(tmp / "new", "train", "--config.model.chanels=8", "--config.trainin.x=1"),
    "not divisible": lambda tmp: program.flags(tmp / "new", "all", "--config.model.channel_multipliers=1,1,1,1,1"),
    "workdir under a file": lambda tmp: program.flags(tmp / "file" / "x", "train"),
    "another config": lambda tmp: program.flags(tmp / "copy", "train", *program.FINISHED, "--config.seed=1"),
    "no checkpoint": lambda tmp: program.flags(tmp / "new", "sample"),
}


@pytest.mark.parametrize("name", REAL)
def test_in_a_process_of_its_own(name, finished, tmp_path):
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    runs.mkdir()
    (runs / "file").write_text("mine")
    shutil.copytree(finished, runs / "copy")
    before = program.snapshot(runs)
    # Whatever is compiled would be kept in the cache.
    env = program.environment(JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    result = program.run(*REAL[name](runs), env=env)
    assert result.status == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert program.snapshot(runs) == before
    assert not cache.exists() or not any(cache.iterdir())


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for word in ("--config", "--workdir", "--mode", "train", "sample", "evaluate", "likelihood", "75"):
        assert word in out


def test_overrides_in_two_words(tmp_path, refuse):
    """`--config.a.b VALUE` is `--config.a.b=VALUE`, a negative number too."""
    arguments = program.flags(tmp_path / "new", "train", "--config.mesh.data", "-3", "--config.seed", "x")
    line = refuse(arguments, tmp_path)
    assert "-3" in line
    assert "seed: must be an integer, not x" in line


def test_works_from_any_directory(tmp_path, monkeypatch, refuse):
    monkeypatch.chdir(tmp_path)
    line = refuse(program.flags(Path("new"), "train", "--config.seed=x"), tmp_path)
    assert "seed" in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dtype=foo", "invalid choice: 'foo'"),
        ("--batch=-1", "must be a positive integer, not -1"),
        ("--steps=0", "must be a positive integer, not 0"),
    ],
)
def test_benchmark_refuses_what_it_cannot_run(flag, message):
    command = [sys.executable, str(program.ROOT / "scripts" / "benchmark"), "--models=mlp", flag]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
