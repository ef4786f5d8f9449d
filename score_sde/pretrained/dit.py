"""DiT's and SiT's published `.pt`: the tensors of their EMA weights to the parameters of `DiT`.

Published networks have learned_variance=True, positions="sincos", 1000 classes, and take latents of 4 channels.
"""

import numpy as np

from score_sde.models.dit import DiT
from score_sde.pretrained.tensors import Part, Tensors
from score_sde.typing import Params


def convert(settings: DiT, tensors: Tensors) -> Params:
    """The parameters; what is missing or left over is for `tensors.checked`."""
    tensors.ignore(["pos_embed"])  # sin-cos positions, which are computed
    return {
        "patches_in": patches(tensors.conv("x_embedder.proj")),
        "embed_in": tensors.dense("t_embedder.mlp.0"),
        "embed_out": tensors.dense("t_embedder.mlp.2"),
        "condition": {"label": null_first(tensors.table("y_embedder.embedding_table"))},
        "blocks": {number: _block(f"blocks.{number}", tensors) for number in range(settings.dimensions.depth)},
        "modulation": {"dense": tensors.dense("final_layer.adaLN_modulation.1")},
        "patches_out": tensors.dense("final_layer.linear"),
    }


def _block(name: str, tensors: Tensors) -> Part:
    return {
        "modulation": {"dense": tensors.dense(f"{name}.adaLN_modulation.1")},
        "attention": {
            "query_key_value": tensors.dense(f"{name}.attn.qkv"),
            "output": tensors.dense(f"{name}.attn.proj"),
        },
        "feed_forward": {
            "inner": tensors.dense(f"{name}.mlp.fc1"),
            "output": tensors.dense(f"{name}.mlp.fc2"),
        },
    }


def patches(part: Part) -> Part:
    """The kernel of a convolution that sees each patch once, as that of a linear layer."""
    kernel = part["kernel"]
    return part | {"kernel": kernel.reshape(-1, kernel.shape[-1]) if kernel.size else kernel}


def null_first(part: Part) -> Part:
    """No label is the last row of the published table, and the first of this project's."""
    return {"embedding": np.roll(part["embedding"], 1, axis=0)}
