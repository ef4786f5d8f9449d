"""Score networks. To add one: a file with its settings and nnx module, and its line in `NETWORKS`."""

from score_sde.models.adm import ADM
from score_sde.models.ddpm import DDPM
from score_sde.models.functional import Network, Settings
from score_sde.models.ncsnpp import NCSNpp

NETWORKS: dict[str, type[Settings]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "adm": ADM,
}

__all__ = ["NETWORKS", "Network", "Settings"]
