"""Score networks. To add one: a file with its settings and nnx module, and its line in `NETWORKS`.

Noise-conditional classifiers, of the labels given x_t, likewise in `CLASSIFIERS`.
"""

from score_sde.models.adm import ADM
from score_sde.models.adm_classifier import ADMClassifier
from score_sde.models.ddpm import DDPM
from score_sde.models.edm import SongUNet
from score_sde.models.edm2 import EDM2
from score_sde.models.functional import Classifier, Labelled, Network, Settings
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.wide_resnet import WideResNet

NETWORKS: dict[str, type[Settings]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "song_unet": SongUNet,
    "edm2": EDM2,
    "adm": ADM,
}

CLASSIFIERS: dict[str, type[Labelled]] = {
    "adm": ADMClassifier,
    "wide_resnet": WideResNet,
}

__all__ = ["CLASSIFIERS", "NETWORKS", "Classifier", "Network", "Settings"]
