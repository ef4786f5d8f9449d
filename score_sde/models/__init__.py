"""Score networks. To add one: a file with its settings and nnx module, and its line in `NETWORKS`."""

from score_sde.models.ddpm import DDPM
from score_sde.models.functional import Network, Settings
from score_sde.models.ncsn import NCSN
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.ncsnv2 import NCSNv2

NETWORKS: dict[str, type[Settings]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
}

__all__ = ["NETWORKS", "Network", "Settings"]
