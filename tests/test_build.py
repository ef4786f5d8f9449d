"""From config files and overrides to objects, and back to plain data."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from score_sde import build, schema
from score_sde.errors import UserError
from score_sde.losses import TIMES, WEIGHTINGS, Times
from score_sde.samplers import DDIM
from score_sde.sde import EDM, VE, VP, Options
from score_sde.training.duration import Duration
from score_sde.training.ema import Exponential
from tests import program

FILES = [program.CONFIG]  # the others are in test_configs


def variants() -> list[str]:
    """Every config file, with each of its variants."""
    found = []
    for path in FILES:
        module = importlib.import_module(f"configs.{path.stem}")
        found += [f"{path.stem}:{name}" for name in getattr(module, "VARIANTS", ("",))]
    return found


def make(tmp_path: Path, config: str = "digits", **overrides: str):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    name, _, variant = config.partition(":")
    path = program.ROOT / "configs" / f"{name}.py"
    return build.build(build.load_config(f"{path}:{variant}" if variant else str(path)), overrides, tmp_path, "typed")


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("1_000", int, 1000),
        ("1e-3", float, 0.001),
        ("3", float, 3.0),
        ("-0.5", float, -0.5),
        ("True", bool, True),
        ("False", bool, False),
        ("abc", str, "abc"),
        ("1", str, "1"),
        ("5 epochs", Duration, Duration(5, "epochs")),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("('a', \"b\")", tuple[str, ...], ("a", "b")),
        ("a", tuple[str, ...], ("a",)),
        ("", tuple[str, ...], ()),
        ("1,2", tuple[int, ...], (1, 2)),
        ("(1,2)", tuple[int, ...], (1, 2)),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("(1,)", tuple[int, ...], (1,)),
        ("1", tuple[int, ...], (1,)),
        ("()", tuple[int, ...], ()),
        ("0.5,1", tuple[float, ...], (0.5, 1.0)),
    ],
)
def test_text_is_read_as_the_keys_type(text, hint, value):
    converted = schema.convert(schema.Text(text), hint)
    assert converted == value
    assert type(converted) is type(value)
    if isinstance(value, tuple):
        assert [type(entry) for entry in converted] == [type(entry) for entry in value]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (schema.Text("1.0"), int),
        (schema.Text("x"), int),
        (schema.Text("1e3"), int),
        (schema.Text("1"), bool),
        (schema.Text("true"), bool),
        (schema.Text("nan"), float),
        (schema.Text("inf"), float),
        (schema.Text("1e999"), float),
        (schema.Text("1" + "0" * 400), float),
        (schema.Text("None"), float),
        (schema.Text("(" * 5000), float),
        (schema.Text("1,x"), tuple[int, ...]),
        (schema.Text("10"), Duration),
        ("3", int),  # in a file, text is text
        (True, int),
        (1.0, int),
        (True, float),
        (float("nan"), float),
        (1, str),
        (None, int),
        ({"a": 1}, tuple[int, ...]),
        ([1, "a"], tuple[int, ...]),
    ],
)
def test_what_is_not_of_the_type_is_refused(value, hint):
    with pytest.raises(UserError):
        schema.convert(value, hint)


def test_overrides_reach_the_objects(tmp_path):
    built = make(
        tmp_path,
        seed="7",
        model__channel_multipliers="1,3",
        optimiser__learning_rate="1e-3",
        optimiser__warmup="2 epochs",
        sampling__samplers="ddim,quick",
        samplers__quick__solver="ddim",
        samplers__quick__eta="1",
        samplers__quick__steps="5",
        parameterisation__prediction="epsilon",
    )
    assert built.seed == built.config["seed"] == 7
    assert built.network.settings.channel_multipliers == (1, 3)
    assert built.optimiser.learning_rate == 0.001
    assert built.optimiser.warmup == Duration(2, "epochs")
    assert list(built.samplers) == ["ddim", "quick"]
    assert built.samplers["quick"].solver == DDIM(eta=1.0)
    assert built.samplers["quick"].steps == 5
    assert built.parameterisation.prediction == "epsilon"
    assert built.command == "typed"


def test_tables_of_training_reach_the_objects(tmp_path):
    built = make(
        tmp_path,
        objective__name="sliced",
        objective__projections="3",
        weighting__name="p2",
        weighting__gamma="0.5",
        times__name="logit_normal",
        times__std="2",
        times__low_discrepancy="True",
        sampling_sde__name="edm",
        sampling_sde__T="70",
        sampling_sde__t_min="0.02",
        training__ema_half_lives="10 steps,2 epochs",
        evaluation__ema="1",
    )
    assert built.objective.projections == 3
    assert built.weighting == WEIGHTINGS["p2"](gamma=0.5)
    assert built.times == Times(TIMES["logit_normal"](std=2.0), low_discrepancy=True)
    assert built.sampling_sde == EDM(t_min=0.02, T=70.0)
    assert built.profiles() == [Exponential(10.0), Exponential(2 * 1297 / 64)]  # steps of 64 of the 1297 records
    again = build.build(json.loads(json.dumps(built.config)), {}, tmp_path, "typed")
    for name in ("objective", "weighting", "times", "sampling_sde", "training", "evaluation"):
        assert getattr(again, name) == getattr(built, name), name


def test_sampling_takes_the_trainings_process_with_options_of_its_own(tmp_path):
    assert make(tmp_path).sampling_sde == make(tmp_path).sde
    shifted = make(tmp_path, sampling_sde__shift="2")
    assert shifted.sampling_sde == Options(shift=2.0).apply(shifted.sde)
    assert shifted.sde == make(tmp_path).sde


def test_override_wins_over_the_file_and_leaves_the_rest(tmp_path):
    plain, changed = make(tmp_path).config, make(tmp_path, training__batch_size="32").config
    assert changed["training"]["batch_size"] == 32
    changed["training"]["batch_size"] = plain["training"]["batch_size"]
    assert changed == plain


def test_another_row_drops_the_files_settings_of_the_old_one(tmp_path):
    built = make(tmp_path, "digits:ve", sde__name="vp")
    assert built.sde == VP()  # sigma_min and sigma_max of the file would be unknown to it
    kept = make(tmp_path, "digits:ve", sde__sigma_max="20")
    file = make(tmp_path, "digits:ve").sde
    assert kept.sde == dataclasses.replace(file, sigma_max=20.0)
    same = make(tmp_path, "digits:ve", sde__name="ve")
    assert same.sde == file
    other = make(tmp_path, "digits:vp", sde__name="ve", sde__sigma_max="20")
    assert other.sde == VE(sigma_max=20.0)


def test_defaults_are_filled_in(tmp_path):
    """A config of three words says everything once it is resolved."""
    config = ConfigDict({"data": {"source": "digits"}, "sde": {"name": "vp"}, "model": {"name": "ncsnpp"}})
    config.model.channel_multipliers = (1, 1)
    config.model.attention_resolutions = ()
    resolved = build.build(config.to_dict(), {}, tmp_path, "").config
    assert set(resolved) == {"seed", "samplers", "extractors", *build.TABLES, *build.SETTINGS}
    for name, cls in build.SETTINGS.items():
        assert set(resolved[name]) == set(schema.fields_of(cls))
    assert set(resolved["sde"]) == {"name", *schema.fields_of(VP), *schema.fields_of(Options)}
    chosen = {name: resolved[name][table.key] for name, table in build.TABLES.items() if table.default}
    assert chosen == {
        "objective": "denoising",
        "weighting": "sigma2",
        "times": "uniform",
        "classifier": "wide_resnet",
        "sampling_sde": "training",
    }
    assert set(resolved["samplers"]) == set(resolved["sampling"]["samplers"])
    for settings in resolved["samplers"].values():
        assert {"solver", "grid", "steps", "last"} <= set(settings)


@pytest.mark.parametrize("config", variants())
def test_resolved_config_is_json_and_makes_the_same_again(config, tmp_path):
    built = make(tmp_path, config)
    text = json.dumps(built.config, allow_nan=False)
    again = build.build(json.loads(text), {}, tmp_path, "typed")
    assert again.config == built.config
    assert json.dumps(again.config) == text
    assert again.samplers == built.samplers
    for name in ("sde", "sampling_sde", "source", "network", "training", "optimiser", "parameterisation"):
        assert getattr(again, name) == getattr(built, name), name
    for name in ("objective", "weighting", "times"):
        assert getattr(again, name) == getattr(built, name), name


def test_every_problem_is_named_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        make(tmp_path, sde__name="x", training__batch_size="a", training__label_drop="2", nothing__at_all="1", seed="b")
    for part in ("sde.name", "training.batch_size", "label_drop", "nothing.at_all", "seed"):
        assert part in str(error.value)


def test_there_are_configs():
    assert {"digits:vp", "digits:subvp", "digits:ve"} <= set(variants())


@pytest.mark.parametrize("config", variants())
def test_two_steps_of_every_config(config, tmp_path):
    name, _, variant = config.partition(":")
    path = program.ROOT / "configs" / f"{name}.py"
    small = ("--config.training.duration=2 steps", "--config.training.batch_size=16", *program.TINY_NETWORK)
    arguments = program.flags(tmp_path, "train", *small, config=f"{path}:{variant}" if variant else path)
    assert program.main(arguments) == 0
    assert (tmp_path / "checkpoints" / "2").is_dir()
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        json.dumps(make(tmp_path, config, **as_keys(small)).config)
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2]


def as_keys(overrides: tuple[str, ...]) -> dict[str, str]:
    pairs = (flag.removeprefix("--config.").split("=", 1) for flag in overrides)
    return {key.replace(".", "__"): value for key, value in pairs}
