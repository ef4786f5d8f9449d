"""Data sources and the pipeline. To add a source: a file that defines a `Source`, and its line in `SOURCES`."""

from score_sde.data.digits import Digits
from score_sde.data.fashion_mnist import FashionMNIST
from score_sde.data.levels import Levels
from score_sde.data.pipeline import Prefetched, iterate
from score_sde.data.source import Batch, Records, Source
from score_sde.data.synthetic import Synthetic
from score_sde.data.tfds import TFDS

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "synthetic": Synthetic,
    "tfds": TFDS,
}

__all__ = ["SOURCES", "Batch", "Levels", "Prefetched", "Records", "Source", "iterate"]
