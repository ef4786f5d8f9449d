"""Which importer reads a file, for which network. To add one: a line in `CONVERTERS`, and in `_named` if files look otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from score_sde.errors import UserError, closest
from score_sde.models import Network
from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.uvit import UViT
from score_sde.pretrained import dit, score_sde_pytorch, uvit
from score_sde.pretrained.tensors import Tensors, checked, flat
from score_sde.pretrained.torch_files import read_checkpoint
from score_sde.typing import Params

WEIGHTS = ("ema", "raw")
# Settings of a network to what turns named tensors into its parameters.
CONVERTERS: dict[type, Callable[[Any, Tensors], Params]] = {
    NCSNpp: score_sde_pytorch.convert,
    DDPM: score_sde_pytorch.convert,
    DiT: dit.convert,
    UViT: uvit.convert,
}
SEPARATOR = "/"  # in the names of a safetensors file


class Loaded(NamedTuple):
    """raw, average: the parameters and their moving average, the same where the file holds one of them. step: of the
    training, 0 where the file does not say."""

    raw: Params
    average: Params
    step: int


def load(path: Path, network: Network, weights: str = "ema") -> Loaded:
    """A published checkpoint as parameters of `network`. weights: "ema", or "raw" for the parameters as the average too.

    Files: of score_sde_pytorch, and safetensors of this project's export. Raises UserError with one line where the file
    is no such one, is damaged, asks for code to be run, or does not fit the network.
    """
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights {weights!r} ({closest(weights, WEIGHTS)})")
    if path.suffix == ".safetensors":
        params = _read_safetensors(path, network)
        return Loaded(params, params, 0)
    named = _named(path)
    raw, average = (_converted(path, network, arrays) for arrays in (named.raw, named.average))
    return Loaded(raw, raw if weights == "raw" else average, named.step)


def _named(path: Path) -> score_sde_pytorch.Weights:
    content = read_checkpoint(path)
    try:
        if score_sde_pytorch.is_one(content):
            return score_sde_pytorch.weights(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint of score_sde_pytorch: {type(error).__name__} {error}") from error
    keys = list(content) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path} is no checkpoint that is known here: it holds {str(keys)[:200]}")


def _converted(path: Path, network: Network, arrays: dict[str, np.ndarray]) -> Params:
    kind = type(network.settings)
    if kind not in CONVERTERS:
        raise UserError(f"there are no published checkpoints to import for a {kind.__name__}")
    tensors = Tensors(arrays)
    return checked(network, CONVERTERS[kind](network.settings, tensors), tensors, str(path))


# --- this project's own export --------------------------------------------------------------------------------------


def save(path: Path, params: Params, metadata: dict[str, str]) -> None:
    """Writes a network's parameters as safetensors, with their paths as names. metadata: kept in the file's head."""
    named = {SEPARATOR.join(map(str, place)): np.ascontiguousarray(value) for place, value in flat(jax.device_get(params))}
    partial = path.with_suffix(".partial")
    safetensors.numpy.save_file(named, partial, metadata=metadata)
    partial.replace(path)


def _read_safetensors(path: Path, network: Network) -> Params:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated, damaged or no safetensors file ({error})") from error
    tensors, params = Tensors(arrays), {}
    for place in network.parameters():
        name, node = SEPARATOR.join(map(str, place)), params
        if name not in tensors:
            continue  # named as not filled
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = tensors.take(name)
    return checked(network, params, tensors, str(path))
