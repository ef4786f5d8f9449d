"""Score networks. To add one: a file with its settings and nnx module, and its line in `NETWORKS`.

Noise-conditional classifiers, of the labels given x_t, likewise in `CLASSIFIERS`. The networks
that make features for the evaluation of samples are in no table here: `evaluation.extractors` names them.
"""

from score_sde.models.adm import ADM
from score_sde.models.adm_classifier import ADMClassifier
from score_sde.models.audio_unet import AudioUNet
from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT, VideoDiT
from score_sde.models.edm import SongUNet
from score_sde.models.edm2 import EDM2
from score_sde.models.functional import Classifier, FeatureNetwork, Labelled, Network, Settings
from score_sde.models.mlp import MLP
from score_sde.models.ncsn import NCSN
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.ncsnv2 import NCSNv2
from score_sde.models.uvit import UViT
from score_sde.models.video_unet import VideoUNet
from score_sde.models.wide_resnet import WideResNet

NETWORKS: dict[str, type[Settings]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "dit": DiT,
    "video_dit": VideoDiT,
    "uvit": UViT,
    "mlp": MLP,
    "audio_unet": AudioUNet,
    "video_unet": VideoUNet,
    "song_unet": SongUNet,
    "edm2": EDM2,
    "adm": ADM,
}

CLASSIFIERS: dict[str, type[Labelled]] = {
    "adm": ADMClassifier,
    "wide_resnet": WideResNet,
}

__all__ = ["CLASSIFIERS", "NETWORKS", "Classifier", "FeatureNetwork", "Network", "Settings"]
