"""The grid that a solver is compared on where its section in the config says nothing of one."""

from score_sde.samplers import SOLVERS, Solver
from score_sde.sde import SDE, Process

USUAL_GRIDS = {
    **dict.fromkeys(("dpm_solver", "dpmpp", "dpmpp_2m", "dpmpp_3m", "unipc", "sa_solver", "seeds_2"), "log_snr"),
    **dict.fromkeys(("sde_dpmpp_1", "sde_dpmpp_2m", "sde_dpmpp_3m"), "log_snr"),
    **dict.fromkeys(("edm", "restart", "dpm2", "dpm2_ancestral", "lms"), "karras"),
}


def solver_name(solver: Solver) -> str:
    """Its row of `SOLVERS`."""
    return next(name for name, cls in SOLVERS.items() if cls is type(solver))


def usual_grid(solver: Solver, process: Process) -> str:
    """Uniform in t, but for solvers whose polynomials are in λ or σ̄, where the process has those at T."""
    has_levels = isinstance(process, SDE) and not process.ends_in_noise
    return USUAL_GRIDS.get(solver_name(solver), "uniform") if has_levels else "uniform"
