"""Noise processes. To add one: a file that defines an `SDE`, and its line in `PROCESSES`.

`AUGMENTED` are those whose state holds more than the data: they have denoisers, objectives and solvers of their own.
"""

from score_sde.sde.base import SDE, Process, check_kind, expand
from score_sde.sde.cld import CLD
from score_sde.sde.cosine import Cosine
from score_sde.sde.curves import CURVES
from score_sde.sde.ddpm import DDPM
from score_sde.sde.edm import EDM
from score_sde.sde.formula import Formula
from score_sde.sde.from_log_snr import FromLogSNR
from score_sde.sde.integrate import IMPLICIT, METHODS, Solution, integrate
from score_sde.sde.options import Options
from score_sde.sde.rectified_flow import RectifiedFlow
from score_sde.sde.reverse import reverse
from score_sde.sde.smld import SMLD
from score_sde.sde.subvp import SubVP
from score_sde.sde.trigonometric import Trigonometric
from score_sde.sde.vdm import VDM
from score_sde.sde.ve import VE
from score_sde.sde.vp import VP

PROCESSES: dict[str, type[SDE]] = {
    "vp": VP,
    "ddpm": DDPM,
    "cosine": Cosine,
    "subvp": SubVP,
    "ve": VE,
    "smld": SMLD,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
    "trigonometric": Trigonometric,
    "log_snr": FromLogSNR,
    "vdm": VDM,
}

AUGMENTED: dict[str, type[CLD]] = {
    "cld": CLD,
}

__all__ = [
    "AUGMENTED",
    "CLD",
    "CURVES",
    "DDPM",
    "EDM",
    "IMPLICIT",
    "METHODS",
    "PROCESSES",
    "SDE",
    "SMLD",
    "VDM",
    "VE",
    "VP",
    "Cosine",
    "Formula",
    "FromLogSNR",
    "Options",
    "Process",
    "RectifiedFlow",
    "Solution",
    "SubVP",
    "Trigonometric",
    "check_kind",
    "expand",
    "integrate",
    "reverse",
]
