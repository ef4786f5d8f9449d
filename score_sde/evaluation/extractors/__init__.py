"""Feature extractors. To add one: a file with its settings, and its line in `EXTRACTORS`.

Numbers of different extractors are never compared; each is printed with its extractor's `description`.
"""

from score_sde.evaluation.extractors.base import Extractor, Settings
from score_sde.evaluation.extractors.digits_cnn import DigitsCNN
from score_sde.evaluation.extractors.efficientnet_lite0 import EfficientNetLite0
from score_sde.evaluation.extractors.fashion_cnn import FashionCNN
from score_sde.evaluation.extractors.inception import Inception
from score_sde.evaluation.extractors.pixels import Pixels

EXTRACTORS: dict[str, type[Settings]] = {
    "inception": Inception,
    "efficientnet_lite0": EfficientNetLite0,
    "digits_cnn": DigitsCNN,
    "fashion_cnn": FashionCNN,
    "pixels": Pixels,
}

__all__ = ["EXTRACTORS", "Extractor", "Settings"]
