r"""Weights of EDM and EDM2 (Karras et al. 2022, 2024): the tensors of their snapshots to parameters of our networks.

Blocks are named by their resolution, which is read off the names. EDM's labels are one-hot times √classes through a
linear layer, here the rows of a table; no label is its offset alone. In EDM's VE networks the output is −ε: the weights
that make it change sign (`negated`). Which settings fit a snapshot is said by `edm_snapshot`.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from score_sde.errors import UserError
from score_sde.models.adm import ADM
from score_sde.models.edm import SongUNet
from score_sde.models.edm2 import EDM2
from score_sde.models.resample import NAIVE
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params


def convert(settings: SongUNet | ADM | EDM2, tensors: Tensors, *, negated: bool = False) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`.

    Raises UserError where the tensors are of no such network, or it resamples otherwise.
    """
    if isinstance(settings, EDM2):
        assert not negated
        return _edm2(settings, tensors)
    if isinstance(settings, ADM):
        return _adm(settings, tensors, negated)
    return _song_unet(settings, tensors, negated)


def _resolution(tensors: Tensors, name: str) -> int:
    """The height at which the network `name` works first."""
    found = [re.fullmatch(rf"{name}\.enc\.(\d+)x\d+_conv\.weight", each) for each in tensors.left()]
    heights = [int(match[1]) for match in found if match]
    if not heights:
        raise UserError(f"it holds no network of the config's kind: no tensor is named {name}.enc.NxN_conv.weight")
    return heights[0]


def _grouped(part: Part, heads: int, order: str = "new") -> Part:
    """A projection to (heads, features, [q, k, v]) as one to ([q, k, v], heads, features).

    order: "legacy" is to (heads, [q, k, v], features).
    """
    place = -3 if order == "new" else -2
    moved = lambda a: np.moveaxis(a.reshape(*a.shape[:-1], heads, -1, 3), -1, place).reshape(a.shape)
    return {key: moved(value) if value.size else value for key, value in part.items()}


# --- EDM -----------------------------------------------------------------------------------------------------------


def _song_unet(settings: SongUNet, tensors: Tensors, negated: bool) -> Params:
    _check_filters(tensors, settings.resample_filter)
    first, levels = _resolution(tensors, "model"), len(settings.channel_multipliers)
    enc, dec = ([f"model.{way}.{first >> n}x{first >> n}" for n in range(levels)] for way in ("enc", "dec"))
    count = settings.blocks_per_resolution
    params: Part = {
        "embed_in": tensors.dense("model.map_layer0"),
        "embed_out": tensors.dense("model.map_layer1"),
        "conv_in": tensors.conv(f"{enc[0]}_conv"),
        "down": {
            n: _stage(tensors, name, count, f"{enc[n + 1]}_down" if n + 1 < levels else "")
            for n, name in enumerate(enc)
        },
        "middle_in": _block(tensors, f"{dec[-1]}_in0"),
        "middle_attention": {"own": _attention(tensors, f"{dec[-1]}_in0")},
        "middle_out": _block(tensors, f"{dec[-1]}_in1"),
        "up": {
            levels - 1 - n: _stage(tensors, name, count + 1, f"{dec[n - 1]}_up" if n else "", last=True)
            for n, name in enumerate(dec)
        },
    }
    if settings.embedding == "fourier":
        params["fourier"] = {"frequency": tensors.take("model.map_noise.freqs")}
    condition = _condition(settings, tensors)
    if condition:
        params["condition"] = condition
    if settings.encoder == "skip":
        params["join"] = {n: tensors.dense(f"{name}_aux_skip") for n, name in enumerate(enc[1:])}
    elif settings.encoder == "residual":
        params["join"] = {n: {"conv": tensors.conv(f"{name}_aux_residual")} for n, name in enumerate(enc[1:])}
    if settings.decoder == "skip":
        params["grow"] = {n: _tail(tensors, name, negated) for n, name in enumerate(reversed(dec))}
    else:
        params["tail"] = _tail(tensors, dec[0], negated)
    return params


def _condition(settings: SongUNet, tensors: Tensors) -> Part:
    parts: Part = {}
    if settings.classes:
        label = tensors.dense("model.map_label")
        rows, null = label["kernel"] * math.sqrt(settings.classes), label["bias"]
        fits = rows.ndim == 2 and rows.shape[1:] == null.shape
        table = np.concatenate([null[None], rows + null]) if fits else rows
        parts["label"] = {"embedding": table}
    if settings.augment_features:
        parts["augment"] = tensors.dense("model.map_augment", bias=False)
    return parts


def _stage(tensors: Tensors, name: str, count: int, between: str, *, last: bool = False) -> Part:
    """One resolution, of `count` blocks. last: on the way up, where attention follows the last block alone."""
    blocks = [f"{name}_block{i}" for i in range(count)]
    attends = [name for name in blocks if f"{name}.qkv.weight" in tensors]
    place = (lambda name: 0) if last else blocks.index
    stage: Part = {"blocks": {i: _block(tensors, name) for i, name in enumerate(blocks)}}
    if attends:
        stage["attention"] = {place(name): {"own": _attention(tensors, name)} for name in attends}
    return stage | ({"between": _block(tensors, between)} if between else {})


def _block(tensors: Tensors, name: str) -> Part:
    return {
        "norm_in": tensors.norm(f"{name}.norm0"),
        "conv_in": tensors.conv(f"{name}.conv0"),
        "embedding": tensors.dense(f"{name}.affine"),
        "norm_out": tensors.norm(f"{name}.norm1"),
        "conv_out": tensors.conv(f"{name}.conv1"),
        **({"skip": tensors.dense(f"{name}.skip")} if f"{name}.skip.weight" in tensors else {}),
    }


def _attention(tensors: Tensors, name: str, heads: int = 1, order: str = "new") -> Part:
    return {
        "norm": tensors.norm(f"{name}.norm2"),
        "query_key_value": _grouped(tensors.dense(f"{name}.qkv"), heads, order),
        "output": tensors.dense(f"{name}.proj"),
    }


def _tail(tensors: Tensors, name: str, negated: bool) -> Part:
    return {"norm": tensors.norm(f"{name}_aux_norm"), "conv": _signed(tensors.conv(f"{name}_aux_conv"), negated)}


def _signed(part: Part, negated: bool) -> Part:
    return {key: -value for key, value in part.items()} if negated else part


def _check_filters(tensors: Tensors, taps: Sequence[float]) -> None:
    """Takes the filters that the file keeps, which are the settings' once more. Raises UserError where they are not."""
    expected = np.outer(taps, taps) / sum(taps) ** 2
    for name in [name for name in tensors.left() if name.endswith(".resample_filter")]:
        given = tensors.take(name)
        if given.shape[-2:] != expected.shape or not np.allclose(given, expected, rtol=1e-3, atol=0):
            raise UserError(f"it resamples with another filter than the config's {tuple(taps)}: {name}")


# --- EDM's ADM ("DhariwalUNet") ------------------------------------------------------------------------------------


def _adm(settings: ADM, tensors: Tensors, negated: bool) -> Params:
    _check_filters(tensors, NAIVE)
    first, levels = _resolution(tensors, "model"), len(settings.channel_multipliers)
    enc, dec = ([f"model.{way}.{first >> n}x{first >> n}" for n in range(levels)] for way in ("enc", "dec"))
    count = settings.blocks_per_resolution
    level = lambda name, blocks, after: {
        "layers": {i: _layer(settings, tensors, f"{name}_block{i}") for i in range(blocks)},
        **({"after": _layer(settings, tensors, after)} if after else {}),
    }
    down = {n: level(name, count, f"{enc[n + 1]}_down" if n + 1 < levels else "") for n, name in enumerate(enc)}
    up = {levels - 1 - n: level(name, count + 1, f"{dec[n - 1]}_up" if n else "") for n, name in enumerate(dec)}
    params: Part = {
        "noise": {"embed_in": tensors.dense("model.map_layer0"), "embed_out": tensors.dense("model.map_layer1")},
        "encoder": {
            "conv_in": tensors.conv(f"{enc[0]}_conv"),
            "levels": down,
            "middle_in": _layer(settings, tensors, f"{dec[-1]}_in0"),
            "middle_out": _layer(settings, tensors, f"{dec[-1]}_in1"),
        },
        "up": up,
        "norm_out": tensors.norm("model.out_norm"),
        "conv_out": _signed(tensors.conv("model.out_conv"), negated),
    }
    if settings.classes:
        rows = tensors.dense("model.map_label", bias=False)["kernel"]
        params["condition"] = {"label": {"embedding": np.pad(rows, ((1, 0), (0, 0))) if rows.ndim == 2 else rows}}
    if settings.augment_features:
        params["augmentation"] = {"augment": tensors.dense("model.map_augment", bias=False)}
    return params


def _layer(settings: ADM, tensors: Tensors, name: str) -> Part:
    if f"{name}.qkv.weight" not in tensors:
        return {"block": _block(tensors, name)}
    block = _block(tensors, name)
    heads = settings.heads_of(block["norm_out"]["scale"].size)
    return {"block": block, "attention": _attention(tensors, name, heads, settings.attention_order)}


# --- EDM2 ----------------------------------------------------------------------------------------------------------


def _edm2(settings: EDM2, tensors: Tensors) -> Params:
    first = _resolution(tensors, "unet")
    params: Part = {
        "fourier": _fourier(tensors, "unet.emb_fourier"),
        "noise": tensors.dense("unet.emb_noise", bias=False),
        "conv_in": tensors.conv(f"unet.enc.{first}x{first}_conv", bias=False),
        "down": {n: _mp_block(settings, tensors, *each) for n, each in enumerate(_down_names(settings, first))},
        "up": {n: _mp_block(settings, tensors, *each) for n, each in enumerate(_up_names(settings, first))},
        "conv_out": tensors.conv("unet.out_conv", bias=False),
        "gain_out": tensors.take("unet.out_gain"),
    }
    if settings.classes:
        params["label"] = tensors.dense("unet.emb_label", bias=False)
    if settings.uncertainty_features:
        params["uncertainty_fourier"] = _fourier(tensors, "logvar_fourier")
        params["uncertainty"] = tensors.dense("logvar_linear", bias=False)
    return params


def _fourier(tensors: Tensors, name: str) -> Part:
    return {"frequency": tensors.take(f"{name}.freqs"), "phase": tensors.take(f"{name}.phases")}


def _down_names(settings: EDM2, first: int) -> Iterator[tuple[str, int]]:
    """Each block's name and width, in order."""
    for level, width in enumerate(settings.widths):
        name = f"unet.enc.{first >> level}x{first >> level}"
        if level:
            yield f"{name}_down", settings.widths[level - 1]
        for i in range(settings.blocks_per_resolution):
            yield f"{name}_block{i}", width


def _up_names(settings: EDM2, first: int) -> Iterator[tuple[str, int]]:
    last = len(settings.widths) - 1
    for level, width in reversed(list(enumerate(settings.widths))):
        name = f"unet.dec.{first >> level}x{first >> level}"
        if level == last:
            yield f"{name}_in0", width
            yield f"{name}_in1", width
        else:
            yield f"{name}_up", settings.widths[level + 1]
        for i in range(settings.blocks_per_resolution + 1):
            yield f"{name}_block{i}", width


def _mp_block(settings: EDM2, tensors: Tensors, name: str, width: int) -> Part:
    block: Part = {
        "conv_in": tensors.conv(f"{name}.conv_res0", bias=False),
        "embedding": tensors.dense(f"{name}.emb_linear", bias=False),
        "embedding_gain": tensors.take(f"{name}.emb_gain"),
        "conv_out": tensors.conv(f"{name}.conv_res1", bias=False),
    }
    if f"{name}.conv_skip.weight" in tensors:
        block["skip"] = tensors.dense(f"{name}.conv_skip", bias=False)
    if f"{name}.attn_qkv.weight" in tensors:
        block["attention"] = {
            "query_key_value": _grouped(tensors.dense(f"{name}.attn_qkv", bias=False), settings.heads(width)),
            "output": tensors.dense(f"{name}.attn_proj", bias=False),
        }
    return block
