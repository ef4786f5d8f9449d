"""Solvers of the reverse-time process. To add one: a file that defines a `Solver`, and its line in `SOLVERS`."""

from score_sde.samplers.base import LAST_STEPS, Carry, Samples, Solver, check_grid, run
from score_sde.samplers.cld import SSCS, AugmentedEulerMaruyama, SSCSMidpoint
from score_sde.samplers.ddim import DDIM, Ancestral
from score_sde.samplers.euler_maruyama import EulerMaruyama
from score_sde.samplers.grids import GRIDS
from score_sde.samplers.predictor_corrector import PredictorCorrector
from score_sde.samplers.probability_flow import ProbabilityFlowODE
from score_sde.samplers.reverse_diffusion import ReverseDiffusion
from score_sde.samplers.sampler import Sampler

SOLVERS: dict[str, type[Solver]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "ddim": DDIM,
    "pc": PredictorCorrector,
    "ode": ProbabilityFlowODE,
    "cld_euler_maruyama": AugmentedEulerMaruyama,
    "sscs": SSCS,
    "sscs_midpoint": SSCSMidpoint,
}

__all__ = ["GRIDS", "LAST_STEPS", "SOLVERS", "Carry", "Sampler", "Samples", "Solver", "check_grid", "run"]
