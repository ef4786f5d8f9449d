"""The networks of DiT and SiT for ImageNet 256×256: latents of 32×32 with 4 channels."""

from ml_collections import ConfigDict

from configs.bases import arguments, images

NETWORKS = tuple(f"{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8))


def apply(config: ConfigDict, network: str) -> None:
    """network: "size/patch", one of `NETWORKS`, with twice the output's channels, as published."""
    arguments.check(network, NETWORKS)
    size, patch = network.split("/")
    images.latents(config, size=32)
    config.model = ConfigDict(
        {"name": "dit", "size": size, "patch": int(patch), "learned_variance": True, "classes": 1000}
    )
