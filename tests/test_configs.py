"""Every config: builds at its full size without computing anything, and trains two steps at a reduced one."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import score_sde_pytorch as translation
from score_sde import build
from score_sde.errors import UserError
from score_sde.experiment import agreement
from score_sde.models import NETWORKS, Network
from score_sde.pretrained import score_sde_pytorch
from tests import program, sources

CONFIGS = program.ROOT / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.py") if path.name != "__init__.py" and "bases" not in path.parts)
# Files that take an argument, and those of them to try; the rest are tried without.
IMPORTED = program.ROOT / "tests" / "fixtures" / "score_sde_pytorch" / "residual.json"
ARGUMENTS = {
    "digits.py": ["vp", "subvp", "ve", "likelihood", "vdm", "cld"],
    "fashion_mnist.py": ["edm", "class", "vp"],
    "toys.py": ["two_moons", "checkerboard"],
    "adm/imagenet256.py": ["cond", "uncond"],
    "dit/imagenet256.py": ["S/2", "XL/8"],
    "sit/imagenet256.py": ["B/4"],
    "edm/cifar10.py": ["uncond_ddpmpp", "cond_ncsnpp"],
    "edm/afhq64.py": ["ncsnpp"],
    "edm2/imagenet512.py": ["XS", "XXL"],
    "edm2/imagenet64.py": ["S", "XL"],
    "score_sde_pytorch.py": [str(IMPORTED)],
}
# Settings of a model that make any of its kind small.
SMALL = {
    "ncsnpp": {"channels": 8, "channel_multipliers": "1,1", "blocks_per_resolution": 1, "attention_resolutions": 8},
    "ddpm": {"channels": 32, "channel_multipliers": "1,1", "blocks_per_resolution": 1, "attention_resolutions": 8},
    "ncsn": {"channels": 4},
    "ncsnv2": {"channels": 4},
    "song_unet": {"channels": 8, "channel_multipliers": "1,1", "blocks_per_resolution": 1, "attention_resolutions": 8},
    "edm2": {
        "channels": 8,
        "channel_multipliers": "1,1",
        "blocks_per_resolution": 1,
        "attention_resolutions": 8,
        "channels_per_head": 8,
    },
    "adm": {
        "channels": 32,
        "channel_multipliers": "1,1",
        "blocks_per_resolution": 1,
        "attention_resolutions": 8,
        "head_channels": 16,
    },
    "dit": {"depth": 1, "width": 16, "heads": 2},
    "mlp": {"width": 8, "depth": 1},
    "audio_unet": {"channels": 8, "channel_multipliers": "1,1", "blocks_per_resolution": 1, "attention_levels": 1},
}
# Files whose data are no images, and those that they are trained on instead.
OWN = {"digits.py": {}, "toys.py": {"data.records": 16}, "audio.py": {"data.length": 64}}
# Files whose argument is the size of the network, which the settings above are instead of: one is trained.
SIZES = ("dit/imagenet256.py", "edm2/imagenet512.py", "edm2/imagenet64.py")
SIZE = {"ncsnv2": 16}
# What makes a step of a family's files one program, which is then compiled once: the files differ by their levels.
ALIKE = {"ncsn": {"model.noise_levels": 10, "sde.scales": 10, "sde.sigma_max": 50.0, "model.sigma_max": 50.0}}

ALL = [
    (str(path.relative_to(CONFIGS)), argument)
    for path in FILES
    for argument in ARGUMENTS.get(str(path.relative_to(CONFIGS)), [""])
]
TRAINED = [(file, argument) for file, argument in ALL if file not in SIZES or argument == ARGUMENTS[file][0]]


def each(cases):
    ids = [f"{file}:{Path(argument).stem if argument.endswith('.json') else argument}" for file, argument in cases]
    return pytest.mark.parametrize(("file", "argument"), cases, ids=ids)


@pytest.fixture(autouse=True)
def quick_compiling():
    """What is compiled here runs twice."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _values(file, argument):
    return build.load_config(str(CONFIGS / file) + (f":{argument}" if argument else ""))


@each(ALL)
def test_builds_at_full_size(file, argument, tmp_path):
    experiment = build.build(_values(file, argument), {}, tmp_path / "run", "")
    agreement.check(experiment)
    state = jax.eval_shape(experiment.init_state)
    assert all(leaf.size for leaf in jax.tree.leaves(state.params))
    assert experiment.network.size() == sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
    assert not (tmp_path / "run").exists()


@each(ALL)
def test_says_what_it_is(file, argument):
    """Paper, cost, what to expect and the command, which is its own."""
    text = (CONFIGS / file).read_text(encoding="utf-8")
    for word in ("Command:", "Cost:", "Expected:", "Paper:"):
        assert f"\n{word} " in text, word
    assert f"--config=configs/{file}" in text


@each(TRAINED)
def test_trains_two_steps(file, argument, tmp_path):
    values = _values(file, argument)
    name = values["model"]["name"]
    overrides = {f"model.{key}": value for key, value in SMALL[name].items()} | ALIKE.get(name, {})
    if file in OWN:
        overrides |= OWN[file]
        if file == "audio.py":
            for sound in "ab":
                sources.wav(tmp_path / "sounds" / f"{sound}.wav", np.zeros((128, 1)), rate=16000)
            overrides["data.folder"] = tmp_path / "sounds"
        if file == "digits.py":
            overrides = {"model.channels": 8, "model.channel_multipliers": 1}
    else:
        kept = {key: values["data"][key] for key in ("low", "classes", "channels") if key in values["data"]}
        data = {"size": SIZE.get(name, 16), "records": 4, "classes": values["model"].get("classes", 0), **kept}
        overrides |= {"data.source": "synthetic", **{f"data.{key}": value for key, value in data.items()}}
        overrides["evaluation.metrics"] = "frechet"
    overrides |= {"training.batch_size": 2, "training.duration": "2 steps", "training.log_every": "1 steps"}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    config = str(CONFIGS / file) + (f":{argument}" if argument else "")
    assert program.main(program.flags(tmp_path / "run", "train", *flags, config=config)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


# --- score_sde's own, against the original's configs as they were recorded ------------------------------------------

ORIGINAL = json.loads((Path(__file__).parent / "fixtures" / "score_sde_configs.json").read_text())


@pytest.mark.parametrize("name", sorted(ORIGINAL))
def test_the_published_settings_are_kept(name):
    original, ours = ORIGINAL[name], build.load_config(str(CONFIGS / f"{name}.py"))
    model, settings = score_sde_pytorch.settings_of(original)
    assert ours["model"]["name"] == model
    built = NETWORKS[model](**{key: value for key, value in ours["model"].items() if key != "name"})
    for key, value in settings.items():
        told_levels = ours["sde"]["name"] == "smld"  # else the network does not use its table of levels
        if told_levels or key not in ("sigma_min", "sigma_max", "noise_levels"):
            assert getattr(built, key) == value, key
    assert ours["data"]["size"] == original["data"]["image_size"]
    assert ours["data"]["low"] == (-1 if original["data"]["centered"] else 0)
    assert ours["training"]["batch_size"] == original["training"]["batch_size"]
    assert ours["training"]["duration"] == f"{original['training']['n_iters'] - 1} steps"
    assert ours["training"]["flip"] == original["data"]["random_flip"]
    rate, half_life = original["model"]["ema_rate"], float(ours["training"]["ema_half_lives"][0].split()[0])
    assert 0.5 ** (1 / half_life) == pytest.approx(rate, abs=1e-8)
    assert ours["optimiser"]["learning_rate"] == original["optim"]["lr"]
    assert ours["optimiser"]["warmup"] == f"{original['optim']['warmup']} steps"
    assert ours["optimiser"]["gradient_clip"] == max(0, original["optim"]["grad_clip"])
    assert ours["objective"]["reduction"] == ("mean" if original["training"]["reduce_mean"] else "sum")
    sampler = ours["samplers"]["pc"]
    assert sampler["steps"] == original["model"]["num_scales"]
    if sampler["corrector"] != "none":
        assert sampler["snr"] == original["sampling"]["snr"]
        assert sampler["corrector_steps"] == original["sampling"]["n_steps_each"]


# --- EDM's, against the options in its README and the defaults of its train.py ---------------------------------------

# Batch size, learning rate, duration and half-life in millions of images, dropout, probability of augmentation.
EDM = {
    "cifar10": (512, 1e-3, 200, 0.5, 0.13, 0.12),
    "ffhq64": (256, 2e-4, 200, 0.5, 0.05, 0.15),
    "afhq64": (256, 2e-4, 200, 0.5, 0.25, 0.15),
    "imagenet64": (4096, 1e-4, 2500, 50, 0.1, 0.0),
}


@pytest.mark.parametrize("name", EDM)
def test_edm_trains_as_published(name):
    config = build.load_config(str(CONFIGS / "edm" / f"{name}.py"))
    training, optimiser = config["training"], config["optimiser"]
    batch_size, rate, duration, half_life, dropout, augment = EDM[name]
    assert (training["batch_size"], training["augment"], training["flip"]) == (batch_size, augment, False)
    assert training["duration"] == f"{duration * 10**6} images"
    assert training["ema_half_lives"] == (f"{round(half_life * 10**6)} images",)
    assert (optimiser["learning_rate"], optimiser["warmup"]) == (rate, "10000000 images")
    assert (optimiser["name"], optimiser["gradient_clip"]) == ("adam", 0)
    assert (config["model"]["dropout"], config["model"].get("augment_features", 0)) == (dropout, 9 if augment else 0)


# Parameters as published, in millions, to the digits given.
COUNTS = {
    "ve/cifar10_ncsnpp_continuous": 62.759,
    "ve/cifar10_ncsnpp_deep_continuous": 107.587,
    "vp/cifar10_ddpmpp_continuous": 61.804,
    "vp/cifar10_ddpmpp_deep_continuous": 106.633,
    "ve/cifar10_ncsnpp": 62.693,
    "vp/ddpm/cifar10": 35.219,
    "vp/ddpm/bedroom": 111.57,
    "ve/ffhq_256_ncsnpp_continuous": 65.575,
    "ve/ffhq_ncsnpp_continuous": 105.786,
}


# In millions, as their papers round them.
ROUNDED = {
    **{f"dit/imagenet256.py:{size}/2": count for size, count in {"S": 33, "B": 130, "L": 458, "XL": 675}.items()},
    "sit/imagenet256.py": 675,
    "edm2/imagenet512.py:XS": 125,
    "edm2/imagenet512.py:S": 280,
    "edm2/imagenet512.py:M": 498,
    "edm2/imagenet512.py:L": 778,  # 777.499, which is rounded twice
    "edm2/imagenet512.py:XL": 1119,
    "edm2/imagenet512.py:XXL": 1523,
    "adm/imagenet64.py": 296,
    "adm/imagenet256.py": 554,
}


@pytest.mark.parametrize("name", ROUNDED)
def test_the_published_number_of_parameters_in_millions(name, tmp_path):
    network = build.build(build.load_config(str(CONFIGS / name)), {}, tmp_path, "").network
    assert abs(round(network.size() / 1e6, 1) - ROUNDED[name]) <= 0.5


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_published_number_of_parameters(name, tmp_path):
    network = build.build(build.load_config(str(CONFIGS / f"{name}.py")), {}, tmp_path, "").network
    assert isinstance(network, Network)
    digits = len(str(COUNTS[name]).split(".")[1])
    assert round(network.size() / 1e6, digits) == COUNTS[name]


# --- the original's config as JSON -----------------------------------------------------------------------------------

VE, NCSN, VP, DDPM = (
    "ve/cifar10_ncsnpp_continuous",
    "ve/cifar10_ncsnpp",
    "vp/cifar10_ddpmpp_continuous",
    "vp/cifar10_ddpmpp",
)
# A key of the original with another value, in one of its configs, and what that is here.
PASSED = [
    (VE, "model.name", "ddpm", {"model.name": "ddpm"}),
    (VE, "model.nf", 64, {"model.channels": 64}),
    (VE, "model.ch_mult", [1, 2], {"model.channel_multipliers": (1, 2)}),
    (VE, "model.num_res_blocks", 3, {"model.blocks_per_resolution": 3}),
    (
        VE,
        "model.attn_resolutions",
        [12, 8, 4, 2],
        {"model.attention_resolutions": (8, 4)},
    ),  # 32, 16, 8 and 4 are reached
    (VE, "model.resamp_with_conv", False, {"model.resample_convolution": False}),
    (VE, "model.conditional", False, {"model.noise_conditional": False}),
    (VE, "model.embedding_type", "positional", {"model.embedding": "positional"}),
    (VE, "model.fourier_scale", 4, {"model.fourier_scale": 4}),
    (VE, "model.fir", False, {"model.fir": False}),
    (VE, "model.fir_kernel", [1, 2, 1], {"model.fir_kernel": (1, 2, 1)}),
    (VE, "model.skip_rescale", False, {"model.skip_rescale": False}),
    (VE, "model.resblock_type", "DDPM", {"model.block": "ddpm"}),
    (VE, "model.progressive", "Residual", {"model.progressive": "residual"}),
    (VE, "model.progressive_input", "input_skip", {"model.progressive_input": "input_skip"}),
    (VE, "model.progressive_combine", "cat", {"model.progressive_combine": "cat"}),
    (VE, "model.nonlinearity", "LReLU", {"model.activation": "lrelu"}),
    (VE, "model.dropout", 0.2, {"model.dropout": 0.2}),
    (VE, "model.scale_by_sigma", False, {"model.scale_by_sigma": False}),
    (VE, "model.sigma_min", 0.02, {"sde.sigma_min": 0.02, "model.sigma_min": 0.02}),
    (VE, "model.sigma_max", 90, {"sde.sigma_max": 90.0, "model.sigma_max": 90.0}),
    (VE, "model.num_scales", 500, {"samplers.pc.steps": 500, "model.noise_levels": 500}),
    (NCSN, "model.sigma_min", 0.02, {"sde.sigma_min": 0.02, "model.sigma_min": 0.02}),
    (NCSN, "model.sigma_max", 90, {"sde.sigma_max": 90.0, "model.sigma_max": 90.0}),
    (NCSN, "model.num_scales", 500, {"sde.scales": 500, "samplers.pc.steps": 500, "model.noise_levels": 500}),
    (VP, "model.beta_min", 0.5, {"sde.beta_min": 0.5, "sampling_sde.beta_min": 0.5}),
    (VP, "model.beta_max", 10, {"sde.beta_max": 10.0, "sampling_sde.beta_max": 10.0}),
    (DDPM, "model.beta_min", 0.5, {"sde.beta_min": 0.5}),
    (DDPM, "model.beta_max", 10, {"sde.beta_max": 10.0}),
    (DDPM, "model.num_scales", 500, {"sde.steps": 500, "sde.t_min": 1 / 500, "samplers.pc.steps": 500}),
    (VE, "model.ema_rate", 0.5, {"training.ema_half_lives": ("1 steps",)}),
    (VE, "data.dataset", "SVHN", {"data.name": "svhn_cropped"}),
    (VE, "data.image_size", 64, {"data.size": 64}),
    (VE, "data.num_channels", 1, {"data.channels": 1}),
    (VE, "data.centered", True, {"data.low": -1 - 1 / 255, "data.high": 1 + 1 / 255, "model.centered": True}),
    (VE, "data.uniform_dequantization", True, {"data.low": 0.0, "data.high": 1.0}),
    (VP, "data.uniform_dequantization", True, {"data.low": -1.0, "data.high": 1.0}),
    (VE, "data.random_flip", False, {"training.flip": False}),
    (VE, "training.sde", "subVPSDE", {"sde.name": "subvp", "parameterisation.prediction": "epsilon"}),
    (VE, "training.continuous", False, {"sde.name": "smld", "times.name": "steps"}),
    (VE, "training.reduce_mean", True, {"objective.reduction": "mean"}),
    (VP, "training.reduce_mean", False, {"objective.reduction": "sum"}),
    (VE, "training.likelihood_weighting", True, {"weighting.name": "likelihood"}),
    (VE, "training.batch_size", 7, {"training.batch_size": 7}),
    (VE, "training.n_iters", 101, {"training.duration": "100 steps"}),
    (VE, "training.log_freq", 7, {"training.log_every": "7 steps"}),
    (VE, "training.snapshot_freq", 7, {"training.sample_every": "7 steps"}),
    (VE, "training.snapshot_freq_for_preemption", 7, {"training.save_every": "7 steps"}),
    (VE, "optim.lr", 1e-3, {"optimiser.learning_rate": 1e-3}),
    (VE, "optim.beta1", 0.5, {"optimiser.beta_1": 0.5}),
    (VE, "optim.eps", 1e-6, {"optimiser.epsilon": 1e-6}),
    (VE, "optim.warmup", 3, {"optimiser.warmup": "3 steps"}),
    (VE, "optim.grad_clip", -1, {"optimiser.gradient_clip": 0.0}),
    (VE, "sampling.method", "ode", {"samplers.ode.last": "denoise", "sampling.samplers": ("ode",)}),
    (VE, "sampling.predictor", "ancestral_sampling", {"samplers.pc.predictor": "ancestral"}),
    (VE, "sampling.corrector", "ald", {"samplers.pc.corrector": "annealed_langevin"}),
    (VE, "sampling.n_steps_each", 3, {"samplers.pc.corrector_steps": 3}),
    (VE, "sampling.snr", 0.3, {"samplers.pc.snr": 0.3}),
    (VE, "sampling.noise_removal", False, {"samplers.pc.last": "none"}),
    (VP, "sampling.probability_flow", True, {"samplers.pc.predictor": "probability_flow"}),
    ("ve/church_ncsnpp_continuous", "data.category", "bedroom", {"data.name": "lsun/bedroom"}),
    (VE, "seed", 7, {"seed": 7}),
]
REFUSED = [
    (VE, "model.name", "unet", "'unet' of score_sde_pytorch is not one of"),
    (VE, "model.nonlinearity", "gelu", "unknown activation 'gelu'"),
    ("ve/ncsnv2/cifar10", "model.normalization", "VarianceNorm", "model.normalization 'VarianceNorm'"),
    (VE, "model.num_scales", None, "model.num_scales must be of type int, not None"),
    (VE, "model.nff", 3, r"unknown key model.nff \(did you mean 'model.nf'"),
    (VE, "training.sde", "edm", "unknown training.sde 'edm'"),
    (DDPM, "training.sde", "subvpsde", "'subvpsde' needs training.continuous"),
    (DDPM, "training.likelihood_weighting", True, "likelihood_weighting needs training.continuous"),
    (VE, "optim.optimizer", "SGD", "optim.optimizer 'SGD' is not known"),
    (VE, "optim.weight_decay", 0.1, "optim.weight_decay 0.1"),
    (VE, "sampling.probability_flow", True, "sampling.probability_flow is known with predictor 'euler_maruyama'"),
    (VE, "sampling.method", "sde", "unknown sampling.method 'sde'"),
    (VE, "sampling.predictor", "heun", "unknown predictor 'heun'"),
    (VE, "sampling.corrector", "mala", "unknown corrector 'mala'"),
    (VE, "optim", [1], "must hold the sections model, data"),
]


def changed(tmp_path, name, key=None, value=None):
    """The config that an original's gives here, with one key changed."""
    original = json.loads(json.dumps(ORIGINAL[name]))
    *section, last = (key or "seed").split(".")
    (original[section[0]] if section else original)[last] = 42 if key is None else value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(original))
    return build.load_config(f"{CONFIGS / 'score_sde_pytorch.py'}:{file}")


def found(values, key):
    return functools.reduce(lambda node, part: node[part], key.split("."), values)


@pytest.mark.parametrize(("name", "key", "value", "expected"), PASSED, ids=[f"{p[0]}:{p[1]}" for p in PASSED])
def test_a_key_of_the_original_is_passed_on(name, key, value, expected, tmp_path):
    before, after = changed(tmp_path, name), changed(tmp_path, name, key, value)
    for ours, wanted in expected.items():
        assert found(after, ours) == wanted, ours
    assert before != after


@pytest.mark.parametrize(("name", "key", "value", "message"), REFUSED, ids=[f"{r[0]}:{r[1]}" for r in REFUSED])
def test_what_is_not_known_of_an_original_is_named(name, key, value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build.build(changed(tmp_path, name, key, value), {}, tmp_path / "run", "")


def test_every_key_of_the_originals_is_passed_on_or_refused_or_without_effect(tmp_path):
    without = {"model.normalization"}  # of a U-Net
    without |= set(translation.WITHOUT_EFFECT)
    tried = {key for _, key, *_ in (*PASSED, *REFUSED)}
    before = changed(tmp_path, VE)
    for original in ORIGINAL.values():
        for section in set(original) & {"model", "data", "training", "optim", "sampling"}:
            assert {f"{section}.{key}" for key in original[section]} <= tried | without
    for key in without:
        assert changed(tmp_path, VE, key, "another") == before, key


@pytest.mark.parametrize("name", sorted(set(ORIGINAL) - {"ve/ncsn/celeba", "ve/ncsnv2/bedroom"}))
def test_the_published_config_comes_out_of_the_originals(name, tmp_path):
    """But for the two whose original is no discrete VE, by a key that is missing or misspelt."""
    ours, theirs = _values(f"{name}.py", ""), changed(tmp_path, name)
    for section in ("sde", "parameterisation", "objective", "weighting", "times", "optimiser", "samplers", "seed"):
        assert theirs[section] == ours[section], section
    assert theirs.get("sampling_sde") == ours.get("sampling_sde")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold the sections"),
        ('{"model": {"name": "ncsnpp"}}', "missing are model.num_scales, .*training.continuous"),
    ],
)
def test_a_file_that_is_no_config_of_the_original_is_named(text, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        build.load_config(f"{CONFIGS / 'score_sde_pytorch.py'}:{file}")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        build.load_config(f"{CONFIGS / 'score_sde_pytorch.py'}:{tmp_path / 'absent.json'}")


def test_a_data_set_that_the_original_does_not_have_is_said_to_be_synthetic(tmp_path, capsys):
    values = changed(tmp_path, VE, "data.dataset", "MNIST")
    assert values["data"]["source"] == "synthetic"
    assert "there is no data set MNIST here; synthetic images stand in for it" in capsys.readouterr().out


def test_process_and_levels_may_stand_beside_the_sections_and_other_keys_are_named(tmp_path, capsys):
    original = json.loads(json.dumps(ORIGINAL[VE]))
    sections = {each: original[each] for each in ("model", "data")}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**sections, "sde": "vesde", "continuous": True, "config": VE}))
    values = build.load_config(f"{CONFIGS / 'score_sde_pytorch.py'}:{file}")
    assert values["sde"]["name"] == "ve"
    assert "config is not known and without effect here" in capsys.readouterr().out
