"""Data sources and the pipeline. To add a source: a file that defines a `Source`, and its line in `SOURCES`.

Nothing here imports jax before it is asked for: processes that read and decode beside this one import the sources.
"""

import importlib
from typing import TYPE_CHECKING, Any

from score_sde.data.array_record import ArrayRecord
from score_sde.data.digits import Digits
from score_sde.data.fashion_mnist import FashionMNIST
from score_sde.data.folder import Folder
from score_sde.data.idx import IDX
from score_sde.data.npz import NPZ
from score_sde.data.source import Batch, InMemory, Records, Source, whole
from score_sde.data.synthetic import Synthetic
from score_sde.data.tfds import TFDS
from score_sde.data.toys import Toys
from score_sde.data.wav import WAV
from score_sde.data.workers import InWorkers

if TYPE_CHECKING:
    from score_sde.data.levels import Levels
    from score_sde.data.pipeline import Prefetched, iterate

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "idx": IDX,
    "folder": Folder,
    "array_record": ArrayRecord,
    "tfds": TFDS,
    "npz": NPZ,
    "wav": WAV,
    "toys": Toys,
    "synthetic": Synthetic,
}
WITH_JAX = {"Levels": "levels", "Prefetched": "pipeline", "iterate": "pipeline"}

__all__ = [
    "SOURCES",
    "WAV",
    "Batch",
    "InMemory",
    "InWorkers",
    "Levels",
    "Prefetched",
    "Records",
    "Source",
    "iterate",
    "whole",
]


def __getattr__(name: str) -> Any:
    if name not in WITH_JAX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{WITH_JAX[name]}"), name)
