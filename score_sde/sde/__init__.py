"""Noise processes. To add one: a file that defines an `SDE`, and its line in `PROCESSES`."""

from score_sde.sde.base import SDE, expand
from score_sde.sde.integrate import Solution, integrate
from score_sde.sde.reverse import reverse
from score_sde.sde.subvp import SubVP
from score_sde.sde.ve import VE
from score_sde.sde.vp import VP

PROCESSES: dict[str, type[SDE]] = {
    "vp": VP,
    "subvp": SubVP,
    "ve": VE,
}

__all__ = ["PROCESSES", "SDE", "VE", "VP", "Solution", "SubVP", "expand", "integrate", "reverse"]
