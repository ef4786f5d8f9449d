"""The FID's Inception-v3, as pytorch-fid's and torch-fidelity's `.pth` hold it, to the parameters of `InceptionV3`.

The names are torchvision's, in the order of the branches and units of `models.inception`.
"""

from score_sde.models.inception import BLOCKS, InceptionV3
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params

NORM_EPSILON = 1e-3
STEM = (("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), ("Conv2d_3b_1x1", "Conv2d_4a_3x3"))
# Blocks, and the names of their branches' units; a fork's are the last two of its branch.
_A = (("1x1",), ("5x5_1", "5x5_2"), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"), ("_pool",))
_B = (("3x3",), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3"), ())
_C = (("1x1",), tuple(f"7x7_{n}" for n in range(1, 4)), tuple(f"7x7dbl_{n}" for n in range(1, 6)), ("_pool",))
_D = (("3x3_1", "3x3_2"), tuple(f"7x7x3_{n}" for n in range(1, 5)), ())
_E = (("1x1",), ("3x3_1", "3x3_2a", "3x3_2b"), ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3a", "3x3dbl_3b"), ("_pool",))
NAMES = {"5b": _A, "5c": _A, "5d": _A, "6a": _B, "6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E, "7c": _E}


def convert(settings: InceptionV3, tensors: Tensors) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`. The output's bias is not used."""
    tensors.ignore(["fc.bias"])
    unit = lambda name: tensors.folded(f"{name}.conv", f"{name}.bn", NORM_EPSILON)
    blocks: dict[int, Part] = {}
    for number, (block, names) in enumerate(NAMES.items()):
        branches: dict[int, Part] = {}
        for place, (branch, own) in enumerate(zip(BLOCKS[number], names, strict=True)):
            units = [unit(f"Mixed_{block}.branch{name}") for name in own]
            count = len(branch.units)
            parts = {"units": dict(enumerate(units[:count])), "fork": dict(enumerate(units[count:]))}
            branches[place] = {key: part for key, part in parts.items() if part}
        blocks[number] = {"branches": {place: each for place, each in branches.items() if each}}
    return {
        "stem": {part: {n: unit(name) for n, name in enumerate(names)} for part, names in enumerate(STEM)},
        "blocks": blocks,
        "output": tensors.dense("fc", bias=False),
    }
