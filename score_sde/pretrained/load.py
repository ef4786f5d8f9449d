"""Which importer reads a file, for which network. To add one: its line in `CONVERTERS`."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from score_sde.errors import UserError, closest
from score_sde.models.adm import ADM
from score_sde.models.adm_classifier import ADMClassifier
from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT
from score_sde.models.edm import SongUNet
from score_sde.models.edm2 import EDM2
from score_sde.models.efficientnet import EfficientNetLite0
from score_sde.models.functional import Functional
from score_sde.models.inception import InceptionV3
from score_sde.models.ncsn import NCSN
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.ncsnv2 import NCSNv2
from score_sde.models.uvit import UViT
from score_sde.pretrained import (
    dit,
    edm,
    edm_snapshot,
    efficientnet,
    guided_diffusion,
    inception,
    ncsn,
    score_sde_pytorch,
    uvit,
)
from score_sde.pretrained.pickles import Record
from score_sde.pretrained.tensors import Tensors, checked, flat, listed
from score_sde.pretrained.torch_files import read_checkpoint
from score_sde.typing import Params

WEIGHTS = ("ema", "raw")
# Settings of a network to what turns named tensors into its parameters, called with both.
Converter = Callable[..., Params]
CONVERTERS: dict[type, Converter] = {
    NCSNpp: score_sde_pytorch.convert,
    DDPM: score_sde_pytorch.convert,
    NCSN: ncsn.convert,
    NCSNv2: ncsn.convert,
    ADM: guided_diffusion.convert,
    ADMClassifier: guided_diffusion.convert_classifier,
    DiT: dit.convert,
    SongUNet: edm.convert,
    EDM2: edm.convert,
    UViT: uvit.convert,
    InceptionV3: inception.convert,
    EfficientNetLite0: efficientnet.convert,
}
SEPARATOR = "/"  # in the names of a safetensors file


LAST_STEP = 2**31 - 1
Says = dict[str, dict[str, Any]]
FREE = ("dropout", "dtype", "remat")  # settings of a network that do not change what it computes once trained


class Loaded(NamedTuple):
    """raw, average: the parameters and their moving average, the same where the file holds one of them. step: of the
    training, 0 where the file does not say. says: of sections of a config, the settings with which the network was
    trained, those that the file names."""

    raw: Params
    average: Params
    step: int
    says: Says

    def check(self, config: Says) -> None:
        """Raises UserError that names where a config, as plain data, differs from what the file says."""
        pairs = [
            (f"{section}.{key}", theirs, config[section][key])
            for section, settings in self.says.items()
            for key, theirs in settings.items()
            if key in config[section]
        ]
        other = [f"{key} {theirs!r}, not {ours!r}" for key, theirs, ours in pairs if not _same(theirs, ours)]
        if other:
            raise UserError(f"the file's network was trained with other settings than the config's: {listed(other)}")


class Named(NamedTuple):
    """The same as named tensors. convert: where the file says itself what its names are; None for `CONVERTERS`."""

    raw: dict[str, np.ndarray]
    average: dict[str, np.ndarray]
    step: int
    says: Says
    convert: Converter | None


def load(path: Path, network: Functional, weights: str = "ema") -> Loaded:
    """A published checkpoint as parameters of `network`. weights: "ema", or "raw" for the parameters in its place.

    Files: of score_sde_pytorch, ncsn and ncsnv2 (`.pth`), snapshots of EDM and EDM2 (`.pkl`), state dicts of
    guided-diffusion and DiT (`.pt`), and safetensors of this project's export. Raises UserError with one line where the
    file is no such one, is damaged, asks for code to be run, or does not fit the network.
    """
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights {weights!r} ({closest(weights, WEIGHTS)})")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, network)
    named = _named(path, network)
    step = _step(path, named.step)
    average = _converted(path, network, named.average, named.convert)
    if named.raw is named.average:
        return Loaded(average, average, step, named.says)
    raw = _converted(path, network, named.raw, named.convert)
    return Loaded(raw, raw if weights == "raw" else average, step, named.says)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _step(path: Path, step: int) -> int:
    """The step. Raises UserError where no training has such a one."""
    if not 0 <= step <= LAST_STEP:
        raise UserError(f"{path} is of a step that does not lie in [0, 2**31)")
    return step


def _named(path: Path, network: Functional) -> Named:
    content = read_checkpoint(path)
    try:
        if score_sde_pytorch.is_one(content):
            return Named(*score_sde_pytorch.weights(content), {}, None)
        if ncsn.is_one(content):
            return Named(*ncsn.weights(content), {}, None)
        if isinstance(content, dict) and isinstance(content.get("ema"), Record):
            return _of_snapshot(content["ema"], network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is no checkpoint that is known here: {type(error).__name__} {error}") from error
    if isinstance(content, dict) and content and all(isinstance(each, np.ndarray) for each in content.values()):
        return Named(content, content, 0, {}, None)
    keys = list(content) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path} is no checkpoint that is known here: it holds {str(keys)[:200]}")


def _of_snapshot(record: Record, network: Functional) -> Named:
    """Raises UserError that names the settings in which the snapshot and the config differ."""
    snapshot = edm_snapshot.described(record)
    edm_snapshot.check_settings(snapshot, network.settings, network.shape)
    arrays = edm_snapshot.flat_state(record)
    says = {"parameterisation": snapshot.parameterisation, "sde": snapshot.sde}
    return Named(arrays, arrays, 0, says, functools.partial(edm.convert, negated=snapshot.negated))


def _converted(path: Path, network: Functional, arrays: dict[str, np.ndarray], convert: Converter | None) -> Params:
    kind = type(network.settings)
    convert = convert or CONVERTERS.get(kind)
    if convert is None:
        raise UserError(f"there are no published checkpoints to import for a {kind.__name__}")
    tensors = Tensors(arrays)
    try:
        params = convert(network.settings, tensors)
    except (ValueError, IndexError) as error:  # tensors that belong together do not fit together
        missing = f"; not in the file: {listed(tensors.missing)}" if tensors.missing else ""
        raise UserError(f"{path} does not fit the config's network: {error}{missing}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return checked(network, params, tensors, str(path))


# --- this project's own export --------------------------------------------------------------------------------------


def save(path: Path, params: Params, metadata: dict[str, str]) -> None:
    """Writes a network's parameters, host arrays, as safetensors, with their paths as names.

    metadata: kept in the file's head.
    """
    named = {SEPARATOR.join(map(str, place)): np.ascontiguousarray(value) for place, value in flat(params)}
    partial = path.with_suffix(".partial")
    safetensors.numpy.save_file(named, partial, metadata=metadata)
    partial.replace(path)


def _read_safetensors(path: Path, network: Functional) -> Loaded:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays, metadata = file.get_tensors(), file.metadata() or {}
        config, step = json.loads(metadata.get("config", "{}")), int(metadata.get("step", "0"))
        says = {key: dict(config[key]) for key in ("model", "parameterisation", "sde") if key in config}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is truncated, damaged or no safetensors file ({error})") from error
    for free in FREE:
        says.get("model", {}).pop(free, None)
    tensors = Tensors(arrays)
    params: dict[str | int, Any] = {}
    for place in network.parameters():
        name, node = SEPARATOR.join(map(str, place)), params
        if name not in tensors:
            continue  # named as not filled
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = tensors.take(name)
    params = checked(network, params, tensors, str(path))
    return Loaded(params, params, _step(path, step), says)
