r"""Weights of guided-diffusion (Dhariwal & Nichol 2021): the state dicts of its U-Nets and its classifiers.

The file does not say in which order its attentions hold queries, keys and values: of the published U-Nets that for
ImageNet-64 is "new", all others and the classifiers "legacy" (`attention_order`).

The published networks know no "no label". The null row of the label's embedding is filled with zeros, so that without a
label they see the noise level alone, which they were not trained for.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from score_sde.models.adm import ADM
from score_sde.models.adm_blocks import UNetSettings
from score_sde.models.adm_classifier import ADMClassifier
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params


def convert(settings: ADM, tensors: Tensors) -> Params:
    """The parameters of the U-Net with these settings."""
    params = _trunk(settings, tensors)
    if settings.classes:
        rows = tensors.take("label_emb.weight")
        params["condition"] = {"label": {"embedding": np.pad(rows, ((1, 0), (0, 0))) if rows.ndim == 2 else rows}}
    names, levels = _names("output_blocks", 0), len(settings.channel_multipliers)
    up: dict[int, Part] = {}
    for place in range(levels):
        blocks = list(itertools.islice(names, settings.blocks_per_resolution + 1))
        attends = _attends(tensors, blocks[-1])
        up[place] = {"layers": {number: _layer(tensors, name) for number, name in enumerate(blocks)}}
        if place < levels - 1:
            up[place] |= _after(settings, tensors, f"{blocks[-1]}.{2 if attends else 1}", "conv")
    return params | {"up": up, "norm_out": tensors.norm("out.0"), "conv_out": tensors.conv("out.2")}


def convert_classifier(settings: ADMClassifier, tensors: Tensors) -> Params:
    """The parameters of the classifier with these settings."""
    params = _trunk(settings, tensors)
    pool: Part
    if settings.pool == "attention":
        pool = {
            "norm": tensors.norm("out.0"),
            "position": tensors.take("out.2.positional_embedding").T,
            "query_key_value": tensors.dense("out.2.qkv_proj"),
            "output": tensors.dense("out.2.c_proj"),
        }
    elif settings.pool == "adaptive":
        pool = {"norm": tensors.norm("out.0"), "output": tensors.dense("out.3")}
    elif settings.pool == "spatial":
        pool = {"hidden": tensors.dense("out.0"), "output": tensors.dense("out.2")}
    else:
        pool = {"hidden": tensors.dense("out.0"), "norm": tensors.norm("out.1"), "output": tensors.dense("out.3")}
    return params | {"pool": pool}


def _trunk(settings: UNetSettings, tensors: Tensors) -> Part:
    """The embedding of the noise condition, the way down and the middle."""
    names, count = _names("input_blocks", 1), len(settings.channel_multipliers)
    levels: dict[int, Part] = {}
    for place in range(count):
        blocks = itertools.islice(names, settings.blocks_per_resolution)
        levels[place] = {"layers": {number: _layer(tensors, name) for number, name in enumerate(blocks)}}
        if place < count - 1:
            levels[place] |= _after(settings, tensors, f"{next(names)}.0", "op")
    encoder = {
        "conv_in": tensors.conv("input_blocks.0.0"),
        "levels": levels,
        "middle_in": {
            "block": _block(tensors, "middle_block.0"),
            "attention": _attention(tensors, "middle_block.1"),
        },
        "middle_out": {"block": _block(tensors, "middle_block.2")},
    }
    noise = {"embed_in": tensors.dense("time_embed.0"), "embed_out": tensors.dense("time_embed.2")}
    return {"noise": noise, "encoder": encoder}


def _names(folder: str, first: int) -> Iterator[str]:
    return (f"{folder}.{number}" for number in itertools.count(first))


def _after(settings: UNetSettings, tensors: Tensors, name: str, convolution: str) -> Part:
    """What changes the resolution, if it has weights."""
    if settings.resample_blocks:
        return {"after": {"block": _block(tensors, name)}}
    return {"after": {"conv": tensors.conv(f"{name}.{convolution}")}} if settings.resample_convolution else {}


def _attends(tensors: Tensors, name: str) -> bool:
    """Whether the file has attention there. Whether the network has is seen when all is checked."""
    return f"{name}.1.qkv.weight" in tensors


def _layer(tensors: Tensors, name: str) -> Part:
    attention = {"attention": _attention(tensors, f"{name}.1")} if _attends(tensors, name) else {}
    return {"block": _block(tensors, f"{name}.0"), **attention}


def _block(tensors: Tensors, name: str) -> Part:
    skip = f"{name}.skip_connection"
    return {
        "norm_in": tensors.norm(f"{name}.in_layers.0"),
        "conv_in": tensors.conv(f"{name}.in_layers.2"),
        "embedding": tensors.dense(f"{name}.emb_layers.1"),
        "norm_out": tensors.norm(f"{name}.out_layers.0"),
        "conv_out": tensors.conv(f"{name}.out_layers.3"),
        **({"skip": tensors.dense(skip)} if f"{skip}.weight" in tensors else {}),
    }


def _attention(tensors: Tensors, name: str) -> Part:
    return {
        "norm": tensors.norm(f"{name}.norm"),
        "query_key_value": tensors.dense(f"{name}.qkv"),
        "output": tensors.dense(f"{name}.proj_out"),
    }
