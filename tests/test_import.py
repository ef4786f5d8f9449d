"""--mode=import: what a file says of itself is compared with the config; nothing is written where it does not fit."""

import functools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from score_sde.checkpoint import Checkpoints
from score_sde.errors import UserError
from score_sde.models import CLASSIFIERS, Classifier
from score_sde.pretrained.guided_diffusion import convert_classifier
from score_sde.pretrained.load import load
from score_sde.pretrained.tensors import Tensors, flat
from score_sde.pretrained.torch_files import read_checkpoint
from tests import program, recorded
from tests.test_pretrained import CONFIG, FOLDER, network_of
from tests.test_pretrained_guided_diffusion import ENCODER, FILE, SMALL

EXPERIMENT = f"{CONFIG}:{FOLDER / 'ddpm.json'}"
OF_CONFIG = functools.partial(program.flags, config=EXPERIMENT)
# What that config says of its data set, which is none of the original.
SYNTHETIC = "there is no data set none here; synthetic images stand in for it, see data.source\n"


@pytest.fixture
def file(monkeypatch, tmp_path):
    """Makes a file of that content, or rather what is read of it."""
    contents = {}

    def of(content):
        path = tmp_path / f"{len(contents)}.pth"
        contents[path] = content
        return path

    monkeypatch.setattr("score_sde.pretrained.load.read_checkpoint", contents.__getitem__)
    return of


@functools.cache
def original():
    return read_checkpoint(FOLDER / "ddpm.pth")


def with_step(step):
    return original() | {"step": step}


def with_first(change):
    """The same with the first tensor of the model changed."""
    model = dict(original()["model"])
    name = next(each for each in model if "all_modules" in each)
    model[name] = change(model[name])
    shadow = [change(original()["ema"]["shadow_params"][0]), *original()["ema"]["shadow_params"][1:]]
    return original() | {"model": model, "ema": original()["ema"] | {"shadow_params": shadow}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: with_step(float("inf")), "OverflowError"),
        (lambda: with_step(2**40), "of a step that does not lie in"),
        (lambda: with_step(-7), "of a step that does not lie in"),
        (lambda: with_step(10**5000), "of a step that does not lie in"),
        (lambda: with_first(lambda value: value * np.nan), "not finite: "),
        (
            lambda: with_first(lambda value: value.astype(np.int32)),
            "no floating-point numbers: all_modules.0.*of int32",
        ),
        (lambda: with_first(lambda value: value.astype(np.complex64)), "no floating-point numbers"),
        (lambda: with_first(lambda value: value[:0]), "of another shape: .* is "),
    ],
)
def test_numbers_that_no_training_gives_are_refused(file, content, message, refuse, tmp_path):
    path = file(content())
    error = refuse(OF_CONFIG(tmp_path / "run", "import", f"--import.file={path}"), tmp_path, says=SYNTHETIC)
    assert re.search(message, error)


def exported(path, change=lambda arrays: arrays, **metadata):
    """A safetensors file of the ddpm fixture."""
    params = load(FOLDER / "ddpm.pth", network_of("ddpm")).average
    arrays = {"/".join(map(str, place)): np.ascontiguousarray(value) for place, value in flat(params)}
    safetensors.numpy.save_file(change(arrays), path, metadata)
    return path


def first_as(kind):
    def change(arrays):
        name = next(iter(arrays))
        return arrays | {name: arrays[name].astype(kind)}

    return change


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({"config": {"model": {"centered": False}}}, "model.centered False, not True"),
        ({"config": {"sde": {"name": "cosine"}}}, "sde.name 'cosine', not "),
        ({"config": {"parameterisation": {"prediction": "v"}}}, "parameterisation.prediction 'v', not "),
        ({"step": "-1"}, "of a step that does not lie in"),
        ({"step": "many"}, "no safetensors file"),
        ({"config": 3}, "no safetensors file"),
        ({"change": first_as(np.int32)}, "no floating-point numbers: .* of int32"),
    ],
)
def test_an_export_of_another_experiment_is_refused(make, message, refuse, tmp_path):
    metadata = make | ({"config": json.dumps(make["config"])} if "config" in make else {})
    path = exported(tmp_path / "a.safetensors", **metadata)
    error = refuse(OF_CONFIG(tmp_path / "run", "import", f"--import.file={path}"), tmp_path, says=SYNTHETIC)
    assert re.search(message, error)


def test_an_export_goes_on_at_its_step(tmp_path):
    """Settings that change nothing that is computed, and files that say nothing, are no obstacle."""
    config = json.dumps({"model": {"dropout": 0.7, "remat": "blocks", "of_another_version": 1}})
    loaded = load(exported(tmp_path / "a.safetensors", step="12", config=config), network_of("ddpm"))
    assert loaded.step == 12
    loaded.check({"model": {"dropout": 0.0}})
    assert load(exported(tmp_path / "b.safetensors"), network_of("ddpm"))[2:] == (0, {})


# --- classifiers -----------------------------------------------------------------------------------------------------

OF_DIGITS = (
    "--config.classifier.name=adm",
    "--config.classifier.classes=10",
    "--config.classifier.channels=32",
    "--config.classifier.channel_multipliers=1,2",
    "--config.classifier.blocks_per_resolution=1",
    "--config.classifier.attention_resolutions=4",
    "--config.classifier.head_channels=16",
    "--config.classifier.batch_size=16",
    *program.TINY_TRAINING,
)


def of_ten_classes():
    """The reference's classifier, as of a grey image and with ten classes."""
    weights, _ = recorded.read(FILE, "attention")
    weights = dict(weights)
    weights["input_blocks.0.0.weight"] = weights["input_blocks.0.0.weight"][:, :1]
    for name in ("out.2.c_proj.weight", "out.2.c_proj.bias"):
        weights[name] = np.concatenate([weights[name], weights[name][:3]])
    return weights


def test_a_classifier_is_where_its_own_training_would_be(file, tmp_path):
    path = file(of_ten_classes())
    arguments = (*OF_DIGITS, f"--import.file={path}", "--import.network=classifier")
    assert program.main(program.flags(tmp_path / "run", "import", *arguments)) == 0
    checkpoints = Checkpoints(tmp_path / "run" / "classifier" / "checkpoints", keep=1, read_only=True, warn=print)
    settings = CLASSIFIERS["adm"](**{**SMALL, **ENCODER, "classes": 10})
    params = convert_classifier(settings, Tensors(of_ten_classes()))
    shapes = jax.eval_shape(Classifier(settings, (8, 8, 1)).init, jax.random.key(0))
    step, (average,), _ = checkpoints.restore_ema((shapes,))
    checkpoints.close()
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, average, params)
    duration = "--config.classifier.duration=1 steps"
    assert program.main(program.flags(tmp_path / "run", "train_classifier", *OF_DIGITS, duration)) == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--config.classifier.channels=64",), "does not fit the config's network: of another shape"),
        (("--config.classifier.classes=9",), "classifier.classes must be the data's 10"),
        (("--config.classifier.name=wide_resnet",), "unknown key"),
        (("--import.network=clasifier",), "did you mean 'classifier'"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(file, changes, message, refuse, tmp_path):
    arguments = (*OF_DIGITS, f"--import.file={file(of_ten_classes())}", "--import.network=classifier", *changes)
    assert message in refuse(program.flags(tmp_path / "run", "import", *arguments), tmp_path, compiles=True)


def test_a_score_network_is_no_classifier(tmp_path):
    network = Classifier(CLASSIFIERS["adm"](**{**SMALL, **ENCODER}), (8, 8, 3))
    with pytest.raises(UserError, match="not in the file"):
        load(Path(FOLDER / "ddpm.pth"), network)
