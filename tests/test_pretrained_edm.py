"""Snapshots of EDM and EDM2, against outputs recorded from NVIDIA's code with PyTorch (tests/fixtures/edm*.npz).

A fixture holds the constructor's arguments, the names and shapes of the tensors, inputs and the denoised output; the
values of the tensors are those of `weight`.
"""

import dataclasses
import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.denoiser import Parameterisation
from score_sde.errors import UserError
from score_sde.models import Network
from score_sde.models.edm import SongUNet
from score_sde.pretrained.edm import convert
from score_sde.pretrained.edm_snapshot import check_settings, described, flat_state
from score_sde.pretrained.load import load
from score_sde.pretrained.pickles import Record
from score_sde.pretrained.tensors import Tensors, checked
from score_sde.sde import EDM, PROCESSES
from tests.networks import quick_jit

FIXTURES = Path(__file__).parent / "fixtures"
CASES = {"edm": ("edm", "vp", "ve", "adm", "adm_narrow"), "edm2": ("edm2", "edm2_options")}
case = pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in CASES.items() for name in names])


@functools.cache
def recorded(file):
    with np.load(FIXTURES / f"{file}.npz") as arrays:
        return json.loads(str(arrays["cases"])), {key: arrays[key] for key in arrays.files if key != "cases"}


def weight(name, shape, filter_taps):
    """Off their initial values, each about as large as in training; the filters as they are."""
    if name.endswith("resample_filter"):
        return (np.outer(filter_taps, filter_taps) / sum(filter_taps) ** 2)[None, None]
    start = zlib.crc32(name.encode()) % 1000
    value = np.sin(start + 2.399963 * np.arange(np.prod(shape, dtype=int)) ** 1.1).reshape(shape)
    if name.endswith("phases"):
        return 3 * value
    if "norm" in name or not shape:
        return 1 + 0.3 * value
    return 1.4 * value / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 10)


def snapshot(file, name, **changes):
    """The record of the object in a snapshot, without its tensors, and the tensors."""
    about = recorded(file)[0][name]
    taps = about["arguments"].get("resample_filter", [1, 1])
    tensors = {each: np.float32(weight(each, shape, taps)) for each, shape in about["shapes"].items()}
    return record(about["class_name"], **{**about["arguments"], **changes}), tensors


def record(class_name, *args, **kwargs):
    return Record(class_name, {"_init_args": args, "_init_kwargs": kwargs})


def imported(file, name):
    of, tensors = snapshot(file, name)
    found, tensors = described(of), Tensors(tensors)
    network = Network(found.settings, found.shape)
    params = convert(found.settings, tensors, negated=found.negated)
    return found, network, checked(network, params, tensors, name)


@case
def test_denoises_as_the_original(file, name):
    """Through this project's own preconditioning, at the noise level in the process that the snapshot names."""
    found, network, params = imported(file, name)
    about, arrays = recorded(file)
    given = {
        key.removeprefix(f"{name}/"): jnp.asarray(value) for key, value in arrays.items() if key.startswith(f"{name}/")
    }
    options = dict(found.sde)
    sde = PROCESSES[options.pop("name")](**options) if options else EDM()
    condition = {"augment": given["augment"]} if "augment" in given else {}
    if about[name]["labels"]:
        condition["label"] = jnp.asarray(about[name]["labels"])

    @quick_jit
    def denoised(x, sigma, condition):
        t = sde.time_of_log_snr(-2 * jnp.log(sigma))
        of = Parameterisation(**found.parameterisation).denoiser(sde, network.apply, params)
        return of(x * sde.alpha(t)[:, None, None, None], t, condition or None)

    output = denoised(jnp.moveaxis(given["x"], 1, -1), given["sigma"], condition)
    expected = jnp.moveaxis(given["denoised"], 1, -1)
    for one, other in zip(output, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))
    if "u" in given:
        u = network.log_variance(params, jnp.log(given["sigma"]) / 4)
        np.testing.assert_allclose(u, given["u"], rtol=0, atol=1e-5)


@case
def test_every_tensor_is_needed_and_used(file, name):
    of, arrays = snapshot(file, name)
    found = described(of)
    network = Network(found.settings, found.shape)
    gone = next(each for each in arrays if each.endswith(("map_layer1.weight", "emb_noise.weight")))
    arrays["model.more"] = arrays.pop(gone)
    tensors = Tensors(arrays)
    with pytest.raises(UserError, match=rf"not in the file: {gone}; left over in the file: model\.more"):
        checked(network, convert(found.settings, tensors), tensors, "snapshot.pkl")


def test_another_filter_is_refused():
    of, tensors = snapshot("edm", "edm", resample_filter=[1, 1])
    with pytest.raises(UserError, match=r"another filter than the config's \(1\.0, 1\.0\)"):
        convert(described(of).settings, Tensors(tensors))


def test_weights_of_another_kind_are_refused():
    settings = described(snapshot("edm", "vp")[0]).settings
    with pytest.raises(UserError, match=r"no tensor is named model\.enc\.NxN_conv\.weight"):
        convert(settings, Tensors(snapshot("edm2", "edm2")[1]))


def test_what_a_snapshot_says():
    found = described(record("VPPrecond", 32, 3, beta_min=0.2, beta_d=9.8, attn_resolutions=[64, 16, 3]))
    assert found.sde == {"name": "vp", "beta_min": 0.2, "beta_max": 10.0, "T": 1.0}
    assert found.parameterisation["noise_condition"] == "time"
    assert found.shape == (32, 32, 3)
    assert found.settings.attention_resolutions == (16,)  # it never comes to the others
    assert not found.negated
    assert described(record("VEPrecond", 32, 3)).negated
    published = described(record("Precond", img_resolution=64, img_channels=4, label_dim=1000, model_channels=128))
    assert Network(published.settings, published.shape).size() == 124_713_765
    assert described(record("Precond", 8, 1, 0, clip_act=None)).settings.clip == 0


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (record("StackedRandomGenerator"), "class 'StackedRandomGenerator' are not known"),
        (record("iDDPMPrecond", 64, 3), "'iDDPMPrecond' are not known .*the number of a step of the cosine schedule"),
        (record("EDMPrecond", 32, 3, model_type="DiT"), "networks of class 'DiT' are not known"),
        (record("EDMPrecond", 32, 3, model_channels=8), "no attention in a middle of 32 channels"),
        (record("EDMPrecond", 32, 3, model_channels=100), "must be whole groups"),
        (record("EDMPrecond", 32, model_type="SongUNet"), "does not say its img_channels"),
        (record("EDMPrecond", 32, 3, model_type="SongUNet", depth=3), "not known: depth"),
        (record("EDMPrecond", *range(9)), "has 9 arguments, at most 8"),
        (record("VPPrecond", 32, 3, M=500), "M=500"),
        (record("VPPrecond", 32, 3, encoder_type="spiral"), "encoder"),
        (record("Precond", 32, 3), "does not say its label_dim"),
    ],
)
def test_what_is_not_supported_is_named(of, message):
    with pytest.raises(UserError, match=message):
        described(of)


def test_settings_that_compute_something_else_are_refused():
    """Also where every tensor would fit."""
    found = described(snapshot("edm2", "edm2")[0])
    check_settings(found, dataclasses.replace(found.settings, dtype="bfloat16", dropout=0.1), found.shape)
    other = dataclasses.replace(found.settings, clip=0.0, channels_per_head=4)
    with pytest.raises(UserError, match=r"config's: channels_per_head 8, not 4, clip 256\.0, not 0\.0, samples of"):
        check_settings(found, other, (64, 64, 3))
    with pytest.raises(UserError, match="snapshot's network is a EDM2, the config's a SongUNet"):
        check_settings(found, SongUNet(), found.shape)


@case
def test_a_file_is_imported(file, name, monkeypatch):
    """Whatever the network's kind: what reads the file is the same as for all others."""
    of, tensors = snapshot(file, name)
    for path, value in tensors.items():
        node, parts = of.state, path.split(".")
        for part in parts[:-1]:
            node = node.setdefault("_modules", {}).setdefault(part, {})
        node.setdefault("_buffers", {})[parts[-1]] = value
    monkeypatch.setattr("score_sde.pretrained.load.read_checkpoint", lambda path: {"ema": of})
    found, network, params = imported(file, name)
    loaded = load(Path("a.pkl"), network)
    jax.tree.map(np.testing.assert_array_equal, loaded.average, params)
    config = {"parameterisation": {**found.parameterisation, "more": 1}, "sde": {"name": "edm", **found.sde}}
    loaded.check(config)
    other = {"prediction": "v", "sigma_data": 1.0}
    with pytest.raises(
        UserError, match=r"other settings than the config's: parameterisation\.prediction '\w+', not 'v'"
    ):
        loaded.check(config | {"parameterisation": config["parameterisation"] | other})
    if found.sde:
        with pytest.raises(UserError, match=r"other settings than the config's: sde\.name '\w+', not 'cosine'"):
            loaded.check(config | {"sde": {"name": "cosine"}})
    with pytest.raises(UserError, match=r"a\.pkl: the snapshot's network is another than the config's: classes"):
        load(Path("a.pkl"), Network(dataclasses.replace(found.settings, classes=9), found.shape))


def test_attention_in_either_order_is_the_same():
    found, tensors = described(snapshot("edm", "adm")[0]), snapshot("edm", "adm")[1]
    x, noise = jnp.asarray(recorded("edm")[1]["adm/x"]), jnp.zeros(3)
    outputs = []
    for order in ("new", "legacy"):
        network = Network(dataclasses.replace(found.settings, attention_order=order), found.shape)
        params = convert(network.settings, Tensors(tensors))
        of = quick_jit(functools.partial(network.apply, train=False, rng=None))
        outputs.append(of(params, jnp.moveaxis(x, 1, -1), noise, None))
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5 * float(jnp.abs(outputs[0]).max()))


def test_flat_state():
    """Modules of persistent classes are records, PyTorch's own are their state; what is None is not there."""
    one, two = np.ones(2), np.zeros(3)
    layer = record("Conv2d")
    layer.state = {"_parameters": {"weight": one, "bias": None}, "_buffers": {"f": two, "g": None}, "training": False}
    enc = {"_parameters": {}, "_buffers": {}, "_modules": {"8x8_conv": layer, "8x8_skip": None}}
    model = record("SongUNet")
    model.state = {"_modules": {"enc": enc}}
    outer = record("EDMPrecond")
    outer.state = {"_parameters": {"scale": two}, "_modules": {"model": model}}
    found = flat_state(outer)
    assert list(found) == ["scale", "model.enc.8x8_conv.weight", "model.enc.8x8_conv.f"]
    assert found["model.enc.8x8_conv.weight"] is one
