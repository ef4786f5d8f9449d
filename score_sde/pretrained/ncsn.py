"""NCSN and NCSNv2 (Song & Ermon 2019, 2020): the tensors of their checkpoints to the parameters of our networks.

The names are the same in the authors' repositories ncsn and ncsnv2, and in score_sde_pytorch. A file of the former two
is a list,

    [model, optimizer]                          ncsn, and the model's keys begin with `module.`
    [model, optimizer, epoch, step, average]    ncsnv2; no average where `model.ema` was not set

A conditional normalisation is a table whose rows are γ, α, β of a noise level, one after another. NCSNv2 keeps its
levels, `sigmas`.
"""

from typing import Any

import numpy as np

from score_sde.errors import UserError
from score_sde.models.ncsn import NCSN
from score_sde.models.ncsnv2 import NCSNv2
from score_sde.models.refinenet import LAYOUTS, Stage
from score_sde.pretrained.score_sde_pytorch import BUFFERS, Numbered, Weights
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params

# The original's names of a layout's stages, from the top, and of what refines them, from the bottom.
STAGES = {64: ("1", "2", "3", "4"), 128: ("1", "2", "3", "4", "5"), 256: ("1", "2", "3", "31", "4", "5")}
REFINED = STAGES | {256: ("1", "2", "31", "3", "4", "5")}


def is_one(content: Any) -> bool:
    """Whether an object that was read is such a list."""
    return isinstance(content, list) and len(content) >= 2 and all(isinstance(each, dict) for each in content[:2])


def weights(content: list) -> Weights:
    """The named arrays of a list. Raises UserError where its average does not fit its model."""
    raw = {name.removeprefix("module."): value for name, value in content[0].items()}
    step = int(content[3]) if len(content) > 3 else 0
    if len(content) <= 4:
        return Weights(raw, raw, step)
    average = content[4]
    if average.keys() != raw.keys() - BUFFERS:
        raise UserError(f"its moving average of {len(average)} tensors does not fit its model of {len(raw)}")
    return Weights(raw, raw | average, step)


def convert(settings: NCSN | NCSNv2, tensors: Tensors) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`.

    Raises UserError where an NCSNv2 has other levels than the settings'.
    """
    size = 64
    if isinstance(settings, NCSNv2):
        size = settings.layout
        _check_levels(settings, tensors.take("sigmas"))
    part = _RefineNet(tensors, conditional=isinstance(settings, NCSN))
    stages = zip(STAGES[size], LAYOUTS[size].stages, strict=True)
    last = len(STAGES[size]) - 1
    return {
        "conv_in": tensors.conv("begin_conv"),
        "stages": {number: part.stage(f"res{name}", stage) for number, (name, stage) in enumerate(stages)},
        "refine": {
            number: part.refine(f"refine{name}", first=number == 0, last=number == last)
            for number, name in enumerate(REFINED[size])
        },
        "norm_out": part.norm("normalizer"),
        "conv_out": tensors.conv("end_conv"),
    }


def _check_levels(settings: NCSNv2, sigmas: np.ndarray) -> None:
    levels = np.geomspace(settings.sigma_max, settings.sigma_min, settings.noise_levels)
    if sigmas.size and (sigmas.shape != levels.shape or not np.allclose(sigmas, levels, rtol=1e-3, atol=0)):
        described = lambda each: f"{each.size} from {each.max():.4g} to {each.min():.4g}"
        raise UserError(f"its noise levels are {described(sigmas)}, not as the config's {described(levels)}")


class _RefineNet:
    """The original's parts. conditional: whether normalisation is; only then it is part of a refinement too."""

    def __init__(self, tensors: Tensors, *, conditional: bool) -> None:
        self.tensors, self.conditional = tensors, conditional

    def norm(self, name: str) -> Part:
        if self.conditional:
            gamma, alpha, beta = np.split(self.tensors.take(f"{name}.embed.weight"), 3, axis=-1)
            return {"gamma": gamma, "alpha": alpha, "beta": beta}
        return {key: self.tensors.take(f"{name}.{key}") for key in ("gamma", "alpha", "beta")}

    def stage(self, name: str, stage: Stage) -> Numbered:
        return {0: self.block(f"{name}.0", stage, first=True), 1: self.block(f"{name}.1", stage, first=False)}

    def block(self, name: str, stage: Stage, *, first: bool) -> Part:
        pooled = ".conv" if first and stage.down else ""
        has_shortcut = first and (stage.down or stage.dilation > 1)
        return {
            "norm_in": self.norm(f"{name}.normalize1"),
            "conv_in": self.tensors.conv(f"{name}.conv1"),
            "norm_out": self.norm(f"{name}.normalize2"),
            "conv_out": self.tensors.conv(f"{name}.conv2{pooled}"),
            **({"shortcut": self.tensors.conv(f"{name}.shortcut{pooled}")} if has_shortcut else {}),
        }

    def refine(self, name: str, *, first: bool, last: bool) -> Part:
        inputs, pools = range(1 if first else 2), range(2)
        part: Part = {
            "adapt": {number: self.units(f"{name}.adapt_convs.{number}", 2) for number in inputs},
            "pool_convs": {number: self.tensors.conv(f"{name}.crp.convs.{number}", bias=False) for number in pools},
            "output": self.units(f"{name}.output_convs", 3 if last else 1),
        }
        if not first:
            part["fuse"] = {number: self.tensors.conv(f"{name}.msf.convs.{number}") for number in inputs}
        if self.conditional:
            part["pool_norms"] = {number: self.norm(f"{name}.crp.norms.{number}") for number in pools}
        if self.conditional and not first:
            part["fuse_norms"] = {number: self.norm(f"{name}.msf.norms.{number}") for number in inputs}
        return part

    def units(self, name: str, count: int) -> Part:
        each = [f"{name}.{unit}_{number}" for unit in range(1, count + 1) for number in (1, 2)]
        part: Part = {"convs": {n: self.tensors.conv(f"{unit}_conv", bias=False) for n, unit in enumerate(each)}}
        if self.conditional:
            part["norms"] = {n: self.norm(f"{unit}_norm") for n, unit in enumerate(each)}
        return part
