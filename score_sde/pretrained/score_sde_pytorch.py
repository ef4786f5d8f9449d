"""Checkpoints of score_sde_pytorch (Song et al. 2021), and the tensors of its networks ncsnpp and ddpm.

A file holds `{optimizer, model, ema, step}`. Keys of `model` begin with `module.`, and the parts of these two networks
are numbered in the order in which the original's constructor makes them: `all_modules.N`; those of ncsn and ncsnv2 have
the names that `ncsn` knows. The moving average is a list without names, in the order of the model's trainable
parameters; the random frequencies `W` of a Fourier embedding are not among them.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from score_sde.errors import UserError
from score_sde.models import NETWORKS
from score_sde.models.ddpm import DDPM
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.refinenet import LAYOUTS
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params

Numbered = dict[int, Part]
BUFFERS = ("sigmas",)


class Weights(NamedTuple):
    """raw, average: named arrays of the parameters and of their moving average. step: of the training."""

    raw: dict[str, np.ndarray]
    average: dict[str, np.ndarray]
    step: int


def is_one(content: Any) -> bool:
    """Whether an object that was read is such a checkpoint."""
    return isinstance(content, dict) and {"model", "ema", "step"} <= content.keys()


def weights(content: dict[str, Any]) -> Weights:
    """The named arrays of a checkpoint. Raises UserError where its average does not fit its model."""
    raw = {name.removeprefix("module."): value for name, value in content["model"].items()}
    trainable = [name for name, value in raw.items() if name not in BUFFERS and not _is_frequency(name, value)]
    shadow = content["ema"]["shadow_params"]
    fits = len(shadow) == len(trainable) and all(
        raw[name].shape == value.shape for name, value in zip(trainable, shadow, strict=True)
    )
    if not fits:
        raise UserError(f"its moving average of {len(shadow)} tensors does not fit its model of {len(trainable)}")
    return Weights(raw, raw | dict(zip(trainable, shadow, strict=True)), int(content["step"]))


def _is_frequency(name: str, value: np.ndarray) -> bool:
    return name.endswith(".W") and value.ndim == 1


def convert(settings: NCSNpp | DDPM, tensors: Tensors) -> Params:
    """The parameters of a network with these settings."""
    general = settings.general() if isinstance(settings, DDPM) else settings
    tensors.ignore(BUFFERS)
    return _Unet(general, tensors).params()


class _Unet:
    """The original's order of parts, beside where each goes."""

    def __init__(self, settings: NCSNpp, tensors: Tensors) -> None:
        self.settings, self.tensors = settings, tensors
        self.numbers = itertools.count()

    def params(self) -> Params:
        settings = self.settings
        params: Part = {}
        if settings.embedding != "positional":
            frequency = f"{self.next()}.W"
            if settings.noise_conditional:
                params["fourier"] = {"frequency": self.tensors.take(frequency)}
            else:  # the original makes it, and does not use what it gives
                self.tensors.ignore((frequency,))
        if settings.noise_conditional:
            params["embed_in"] = self.tensors.dense(self.next())
            params["embed_out"] = self.tensors.dense(self.next())
        params["conv_in"] = self.tensors.conv(self.next())
        levels = len(settings.channel_multipliers)
        params["down"], params["join"] = self.down(levels)
        params["middle_in"] = self.block()
        params["middle_attention"] = self.attention()
        params["middle_out"] = self.block()
        params["up"], params["grow"] = self.up(levels)
        if settings.progressive != "output_skip":
            params["tail"] = self.tail()
        return {name: part for name, part in params.items() if part}

    def next(self) -> str:
        return f"all_modules.{next(self.numbers)}"

    def down(self, levels: int) -> tuple[Numbered, Numbered]:
        stages: Numbered = {}
        join: Numbered = {}
        for level in range(levels):
            blocks, attention = {}, {}
            for number in range(self.settings.blocks_per_resolution):
                blocks[number] = self.block()
                if self.attention_follows():
                    attention[number] = self.attention()
            stages[level] = {"blocks": blocks, "attention": attention}
            if level < levels - 1:
                stages[level]["between"] = self.between()
                if self.settings.progressive_input == "input_skip":
                    join[level] = self.tensors.dense(f"{self.next()}.Conv_0")
                elif self.settings.progressive_input == "residual":
                    join[level] = self.resampling(convolution=True)
            stages[level] = {name: part for name, part in stages[level].items() if part}
        return stages, join

    def up(self, levels: int) -> tuple[Numbered, Numbered]:
        stages: Numbered = {}
        grow: Numbered = {}
        for number in range(levels):
            blocks = {block: self.block() for block in range(self.settings.blocks_per_resolution + 1)}
            stages[number] = {"blocks": blocks}
            if self.attention_follows():
                stages[number]["attention"] = {0: self.attention()}
            if self.settings.progressive == "output_skip" or (self.settings.progressive == "residual" and not number):
                grow[number] = self.tail()
            elif self.settings.progressive == "residual":
                grow[number] = self.resampling(convolution=True)
            if number < levels - 1:
                between = self.between()
                if between:
                    stages[number]["between"] = between
        return stages, grow

    def attention_follows(self) -> bool:
        """Whether the next part is an attention: the original's numbers alone say at which height it is.

        An attention is the only part with `NIN_3`, and the last one has a number of its own as any other.
        """
        number = next(self.numbers)
        self.numbers = itertools.count(number)
        return f"all_modules.{number}.NIN_3.W" in self.tensors

    def block(self) -> Part:
        name, tensors = self.next(), self.tensors
        part = {
            "norm_in": tensors.norm(f"{name}.GroupNorm_0"),
            "conv_in": tensors.conv(f"{name}.Conv_0"),
            "norm_out": tensors.norm(f"{name}.GroupNorm_1"),
            "conv_out": tensors.conv(f"{name}.Conv_1"),
        }
        if self.settings.noise_conditional:
            part["embedding"] = tensors.dense(f"{name}.Dense_0")
        else:  # the original makes it and never calls it
            tensors.ignore((f"{name}.Dense_0.weight", f"{name}.Dense_0.bias"))
        if f"{name}.Conv_2.weight" in tensors:
            part["skip"] = tensors.dense(f"{name}.Conv_2")
        elif f"{name}.NIN_0.W" in tensors:
            part["skip"] = self.projection(f"{name}.NIN_0")
        return part

    def attention(self) -> Part:
        name = self.next()
        parts = [self.projection(f"{name}.NIN_{number}") for number in range(3)]
        together = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in ("kernel", "bias")}
        own = {
            "norm": self.tensors.norm(f"{name}.GroupNorm_0"),
            "query_key_value": together,
            "output": self.projection(f"{name}.NIN_3"),
        }
        return {"own": own}

    def projection(self, name: str) -> Part:
        return {"kernel": self.tensors.take(f"{name}.W"), "bias": self.tensors.take(f"{name}.b")}

    def between(self) -> Part:
        if self.settings.block == "biggan":
            return self.block()
        return self.resampling(convolution=self.settings.resample_convolution)

    def resampling(self, *, convolution: bool) -> Part:
        name = self.next()
        if not convolution:
            return {}
        return {"conv": self.tensors.conv(f"{name}.Conv2d_0" if self.settings.fir else f"{name}.Conv_0")}

    def tail(self) -> Part:
        return {"norm": self.tensors.norm(self.next()), "conv": self.tensors.conv(self.next())}


# The original's names of a model's settings, and ours.
NAMES = {
    "nf": "channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "blocks_per_resolution",
    "attn_resolutions": "attention_resolutions",
    "resamp_with_conv": "resample_convolution",
    "resblock_type": "block",
    "conditional": "noise_conditional",
    "embedding_type": "embedding",
    "num_scales": "noise_levels",
    "nonlinearity": "activation",
}
SAME = (
    *("fourier_scale", "fir", "fir_kernel", "skip_rescale", "progressive", "progressive_input", "progressive_combine"),
    *("scale_by_sigma", "sigma_min", "sigma_max", "dropout"),
)
# The original's networks, with their settings that have one value here. What its U-Nets do not read is not among them.
_REFINENET = {"nonlinearity": "elu", "normalization": "InstanceNorm++"}
ONLY: dict[str, dict[str, Any]] = {
    "ncsnpp": {},
    "ddpm": {},
    "ncsn": {**_REFINENET, "scale_by_sigma": False},
    **{f"ncsnv2_{layout}": {**_REFINENET, "scale_by_sigma": True} for layout in LAYOUTS},
}


def settings_of(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A network's name in `NETWORKS` and its settings, from the original's config as plain data: `{model, data, …}`.

    Raises UserError for a network or an option that is not there.
    """
    model, data = config["model"], config["data"]
    original = model["name"]
    if original not in ONLY:
        raise UserError(f"model.name {original!r} of score_sde_pytorch is not one of {', '.join(ONLY)}")
    for key, only in ONLY[original].items():
        if model.get(key, only) != only:
            raise UserError(f"model.{key} {model[key]!r} of score_sde_pytorch is not supported, {only!r} alone")
    name, _, layout = original.partition("_")
    kinds = {field.name: field.type for field in dataclasses.fields(NETWORKS[name])}  # type: ignore[arg-type]
    ours = {NAMES.get(key, key): value for key, value in model.items() if key in NAMES or key in SAME}
    ours = {key: tuple(value) if isinstance(value, list) else value for key, value in ours.items() if key in kinds}
    ours = {key: float(value) if kinds[key] is float else value for key, value in ours.items()}
    if "embedding" in ours:
        ours["embedding"] = {"fourier": "log_fourier"}.get(ours["embedding"].lower(), ours["embedding"].lower())
    for key in ("block", "progressive", "progressive_input", "progressive_combine", "activation"):
        if key in ours:
            ours[key] = ours[key].lower()
    if {
        "attention_resolutions",
        "channel_multipliers",
    } <= ours.keys():  # the original passes over those that the network does not come to
        heights = {data["image_size"] // 2**level for level in range(len(ours["channel_multipliers"]))}
        ours["attention_resolutions"] = tuple(each for each in ours["attention_resolutions"] if each in heights)
    ours |= {"layout": int(layout)} if layout else {}
    return name, ours | {"centered": data["centered"]}
