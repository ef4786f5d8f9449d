"""NCSN's and NCSNv2's weights give the outputs of the authors' code, which fixtures/record_ncsn.py recorded."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.build import load_config
from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network
from score_sde.pretrained.load import load
from score_sde.pretrained.score_sde_pytorch import settings_of
from tests import program, recorded
from tests.networks import quick_jit
from tests.test_pretrained import FOLDER

LEVELS = {"noise_levels": 5, "sigma_max": 1.0}
CASES = {
    "ncsn": {"noise_levels": 7, "sigma_max": 1.0, "centered": False},
    "ncsnv2_64": {"noise_levels": 232, "sigma_max": 50.0, "centered": False},
    "ncsnv2_128": {**LEVELS, "layout": 128},
    "ncsnv2_256": {**LEVELS, "layout": 256},
}


@functools.cache
def network_of(case, **changes):
    return Network(NETWORKS[case.partition("_")[0]](**{"channels": 4, **CASES[case], **changes}), (16, 16, 3))


def in_module(weights, case):
    """The original's state: NCSNv2 keeps its levels."""
    levels = np.geomspace(CASES[case]["sigma_max"], 0.01, CASES[case]["noise_levels"])
    sigmas = {} if case == "ncsn" else {"sigmas": levels}
    return {f"module.{name}": value for name, value in (sigmas | weights).items()}


def negated(weights):
    return {name: -value for name, value in weights.items()}


def written(tmp_path, content):
    """As a plain pickle, which is read like the two layouts of `torch.save`."""
    (tmp_path / "checkpoint.pth").write_bytes(pickle.dumps(content))
    return tmp_path / "checkpoint.pth"


@pytest.mark.parametrize("case", CASES)
def test_the_network_gives_the_references_output(case, tmp_path):
    """From score_sde_pytorch's layout, with weights of their own for the average and the parameters."""
    weights, arrays = recorded.read("ncsn.npz", case)
    network = network_of(case)
    average = {"decay": 0.999, "num_updates": 7, "shadow_params": list(weights.values())}
    content = {"optimizer": {}, "model": in_module(negated(weights), case), "ema": average, "step": 7}
    loaded = load(written(tmp_path, content), network)
    assert loaded.step == 7
    jax.tree.map(lambda average, raw: np.testing.assert_array_equal(raw, -average), loaded.average, loaded.raw)
    apply = quick_jit(lambda params, x, level: network.apply(params, x, level, None, train=False, rng=None))
    x, wanted = arrays["x"].transpose(0, 2, 3, 1), arrays["output"].transpose(0, 2, 3, 1)
    given = apply(loaded.average, jnp.asarray(x), jnp.asarray(arrays["level"], jnp.float32))
    largest = np.abs(wanted).max(axis=(1, 2, 3), keepdims=True)  # of each sample: NCSNv2's are as 1/sigma
    np.testing.assert_allclose(given / largest, wanted / largest, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "step", "sign"), [((), 0, -1), ((3, 7), 7, -1), ((3, 7, "average"), 7, 1)], ids=["ncsn", "raw", "average"]
)
def test_the_authors_lists_hold_the_same(more, step, sign, tmp_path):
    weights, _ = recorded.read("ncsn.npz", "ncsn")
    filled = [weights if each == "average" else each for each in more]
    loaded = load(written(tmp_path, [in_module(negated(weights), "ncsn"), {}, *filled]), network_of("ncsn"))
    assert loaded.step == step
    kernel = weights["begin_conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(loaded.raw["conv_in"]["kernel"], -kernel)
    np.testing.assert_array_equal(loaded.average["conv_in"]["kernel"], sign * kernel)


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda w: [without(w, "normalizer.embed.weight"), {}], {}, "not in the file: normalizer.embed.weight"),
        (lambda w: [{**w, "other.weight": np.zeros(2)}, {}], {}, "left over in the file: other.weight"),
        (lambda w: [w, {}], {"channels": 6}, "of another shape: .*conv_in.kernel"),
        (lambda w: [w, {}], {"noise_levels": 8}, "of another shape: .*alpha is .7, 4., must be .8, 4."),
        (lambda w: [w, {}, 3, 7, without(w, "end_conv.bias")], {}, "moving average of 172 tensors does not fit"),
    ],
    ids=["missing", "left over", "channels", "levels", "average"],
)
def test_what_does_not_fit_is_named(change, settings, message, tmp_path):
    weights, _ = recorded.read("ncsn.npz", "ncsn")
    with pytest.raises(UserError, match=message):
        load(written(tmp_path, change(weights)), network_of("ncsn", **settings))


def test_a_conditional_network_is_no_unconditional_one(tmp_path):
    weights, _ = recorded.read("ncsn.npz", "ncsn")
    with pytest.raises(UserError, match=r"does not fit the config's network: not in the file: .*normalize1.gamma"):
        load(written(tmp_path, [weights, {}]), network_of("ncsnv2_64"))


@pytest.mark.parametrize("changes", [{"sigma_max": 90.0}, {"noise_levels": 500}])
def test_other_levels_are_named(changes, tmp_path):
    weights, _ = recorded.read("ncsn.npz", "ncsnv2_64")
    file = written(tmp_path, [in_module(weights, "ncsnv2_64"), {}])
    with pytest.raises(UserError, match=r"232 from 50 to 0.01, not as the config's (232 from 90|500 from 50)"):
        load(file, network_of("ncsnv2_64", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonlinearity": "relu"}, "model.nonlinearity 'relu' .* 'elu' alone"),
        ({"normalization": "VarianceNorm"}, "model.normalization 'VarianceNorm'"),
        ({"scale_by_sigma": False}, "model.scale_by_sigma False"),
        ({"name": "ncsnv2_32"}, "model.name 'ncsnv2_32' .* ncsn, ncsnv2_64, ncsnv2_128, ncsnv2_256"),
    ],
)
def test_options_that_are_not_known_are_refused(changes, message):
    model = {"name": "ncsnv2_64", "nf": 4, "scale_by_sigma": True, **changes}
    with pytest.raises(UserError, match=message):
        settings_of({"model": model, "data": {"centered": False}})


# --- by config -------------------------------------------------------------------------------------------------------


def test_the_published_config_imports(tmp_path):
    config = program.ROOT / "configs" / "ve" / "ncsn" / "cifar10.py"
    run = lambda mode, *own: program.main(
        program.flags(tmp_path, mode, "--config.model.channels=2", *own, config=config)
    )
    assert run("import", f"--import.file={FOLDER / 'ncsn.pth'}") == 0
    assert run("export") == 0
    network = network_of("ncsn", channels=2, noise_levels=10)
    imported, direct = (load(path, network) for path in (tmp_path / "export" / "7.safetensors", FOLDER / "ncsn.pth"))
    jax.tree.map(np.testing.assert_array_equal, imported.average, direct.average)


def test_levels_of_ones_own_are_the_processs_and_the_networks(tmp_path):
    original = json.loads((FOLDER / "ncsn.json").read_text())
    original["model"] |= {"sigma_min": 0.02, "sigma_max": 3, "num_scales": 12}
    (tmp_path / "config.json").write_text(json.dumps(original))
    config = load_config(f"{program.ROOT / 'configs' / 'score_sde_pytorch.py'}:{tmp_path / 'config.json'}")
    levels = {"sigma_min": 0.02, "sigma_max": 3.0}
    assert config["sde"] == {"name": "smld", "scales": 12, **levels}
    assert levels.items() | {"noise_levels": 12}.items() <= config["model"].items()
