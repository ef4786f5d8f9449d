"""DDPM++/NCSN++ for 8×8 images, 0.7 M parameters: two resolutions, one block each, attention at 4×4."""

from ml_collections import ConfigDict


def apply(config: ConfigDict, *, embedding: str) -> None:
    """embedding: "positional" with noise condition "time", "fourier" with "log_sigma"."""
    config.model = ConfigDict(
        {
            "name": "ncsnpp",
            "channels": 32,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (),
            "embedding": embedding,
            "dropout": 0.0,
        }
    )
