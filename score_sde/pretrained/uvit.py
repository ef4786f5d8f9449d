"""U-ViT's published `.pth`: the tensors of its EMA weights to the parameters of `UViT`.

The published table of labels of ImageNet's latents ends in a row for no label: classes=1000. That of ImageNet 64 does
not, and its network was never told of no label: classes=999, and its last label is what no label is here.
"""

from score_sde.models.uvit import UViT
from score_sde.pretrained.dit import null_first, patches
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params


def convert(settings: UViT, tensors: Tensors) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`."""
    half = settings.dimensions.depth // 2
    positions = tensors.take("pos_embed")
    params = {
        "patches_in": patches(tensors.conv("patch_embed.proj")),
        "positions": positions[0] if positions.size else positions,
        "way_in": {number: _block(f"in_blocks.{number}", tensors) for number in range(half)},
        "middle": _block("mid_block", tensors),
        "way_out": {number: _block(f"out_blocks.{number}", tensors, joined=True) for number in range(half)},
        "norm": tensors.norm("norm"),
        "patches_out": tensors.dense("decoder_pred"),
    }
    if settings.classes:
        params["condition"] = {"label": null_first(tensors.table("label_emb"))}
    if settings.final_convolution:
        params["final"] = tensors.conv("final_layer")
    return params


def _block(name: str, tensors: Tensors, *, joined: bool = False) -> Part:
    part = {
        "norm_in": tensors.norm(f"{name}.norm1"),
        "attention": {
            "query_key_value": tensors.dense(f"{name}.attn.qkv", bias=False),
            "output": tensors.dense(f"{name}.attn.proj"),
        },
        "norm_out": tensors.norm(f"{name}.norm2"),
        "feed_forward": {
            "inner": tensors.dense(f"{name}.mlp.fc1"),
            "output": tensors.dense(f"{name}.mlp.fc2"),
        },
    }
    return part | ({"join": tensors.dense(f"{name}.skip_linear")} if joined else {})
