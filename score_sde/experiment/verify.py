"""--mode=verify: every solver's claimed order of convergence against the measured one; takes no config and no workdir.

See `orders` for what is measured. A solver fails that falls more than 0.2 short of its claim; an order from drawn
paths is allowed two of its standard errors besides. It fails, too, where its result is farther from the exact one than
`orders` allows. Of an ODE solver that chooses its steps it is claimed that its error falls as the square root of its
tolerance or faster; of the adaptive SDE solver, as the power 2/3. Restart, which has no order as it is set, is measured
with restarts whose steps grow with the run's.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from score_sde.errors import RunFailed
from score_sde.experiment import orders
from score_sde.experiment.orders import Measured
from score_sde.samplers import SOLVERS, LinearSolver, Solver
from score_sde.samplers.edm import Restart
from score_sde.training.interrupt import StopRequest
from score_sde.writers import Progress, say

ODE_IN_TOLERANCE, SDE_IN_TOLERANCE = 0.5, 2 / 3
OF_RESTARTS = 2  # with steps in proportion to the run's
SHORT = 0.2  # how far an order may be below what is claimed

# Options under which a solver is verified; one that is not here is verified with its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "euler_maruyama": [{}, {"eta": 0.0}],
    "pc": [{"predictor": name, "corrector": "none"} for name in ("reverse_diffusion", "probability_flow")],
    "ode": [
        {"method": method, "variable": variable}
        for method in ("tsit5", "dopri5", "dopri8", "kvaerno5")
        for variable in ("t", "log_sigma_bar")
    ],
    "euler": [{"variable": variable} for variable in ("t", "log_sigma_bar", "sigma_bar")],
    "midpoint": [{"variable": variable} for variable in ("t", "log_sigma_bar", "sigma_bar")],
    "heun": [{"variable": variable} for variable in ("t", "log_sigma_bar", "sigma_bar")],
    "rk4": [{"variable": variable} for variable in ("t", "log_sigma_bar", "sigma_bar")],
    "ddim": [{}, {"eta": 0.5}],
    "dpm_solver": [{"order": 1}, {"order": 2}, {"order": 2, "form": "taylor"}, {"order": 2, "r": 1.0}, {"order": 3}],
    "dpmpp": [{"order": 1}, {"order": 2}, {"order": 2, "form": "taylor"}, {"order": 2, "r": 1.0}, {"order": 3}],
    "dpmpp_2m": [{}, {"form": "taylor"}],
    "dpmpp_3m": [{}, {"compat": True}, {"start": "cheap"}, {"last_order": 1}],
    "sde_dpmpp_2m": [{}, {"eta": 0.5}, {"eta": 0.0}],
    "sde_dpmpp_3m": [{}, {"compat": True}],
    "lms": [{"order": order} for order in (1, 2, 3, 4)],
    "deis": [{"order": order} for order in (1, 2, 3)],
    "unipc": [{"order": order, "corrector": corrector} for order in (1, 2, 3) for corrector in (False, True)]
    + [{"b": "bh1", "order": 2}, {"prediction": "noise"}],
    "sa_solver": [
        {"tau": 0.0, "predictor_order": 2, "corrector_order": 0},
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 3},
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 4},
        {"predictor_order": 2, "corrector_order": 0},
        {},
    ],
    "edm": [{}, {"churn": 4.0}],
    "restart": [{"repeats": (0,)}, {"low": (0.3,), "high": (1.0,)}],
}


class Case(NamedTuple):
    """A solver, what it is called, what is measured of it, and the order that it must show."""

    title: str
    solver: Solver
    measure: Callable[[Any], Measured]
    claim: float


def cases() -> list[Case]:
    """Every registered solver with each of its variants, and each way to measure it."""
    found = []
    for name, kind in SOLVERS.items():
        for options in VARIANTS.get(name, [{}]):
            solver = kind(**options)
            title = name + "".join(f" {key}={_short(value)}" for key, value in options.items())
            found += _cases(title, solver)
    return found


def _cases(title: str, solver: Solver) -> list[Case]:
    order = solver.convergence
    if isinstance(solver, Restart) and solver.stochastic:
        title, order = f"{title}, its steps in proportion", OF_RESTARTS
    if order is None and solver.stochastic:
        return [Case(title, solver, orders.path_in_tolerance, SDE_IN_TOLERANCE)]
    if order is None:
        return [Case(title, solver, orders.in_tolerance, ODE_IN_TOLERANCE)]
    if not solver.stochastic:
        return [Case(title, solver, orders.strong, order)]
    measures = [orders.exact, orders.paths] if isinstance(solver, LinearSolver) else [orders.exact]
    return [Case(title, solver, measure, order) for measure in measures]


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def good(case: Case, measured: Measured) -> bool:
    """Whether it does, and the result is the right one. The order of paths lost in their noise says nothing."""
    fast = measured.lost or measured.order > case.claim - SHORT - 2 * measured.spread
    return fast and measured.off <= measured.allowed


def run(stop: StopRequest) -> None:
    """Prints the table. Raises RunFailed where a solver falls short, Interrupted after a signal."""
    start, rows, failed = time.perf_counter(), cases(), []
    width = max(len(case.title) for case in rows)
    say(f"{'solver':{width}}  measured on  claimed  measured")
    progress = Progress("verify", len(rows), done=0, unit="orders")
    for case in rows:
        stop.check()
        measured = case.measure(case.solver)
        fine = good(case, measured)
        shown = "lost in the noise" if measured.lost else f"{measured.order:.2f}"
        if measured.spread and not measured.lost:
            shown += f" ± {measured.spread:.2f}"
        if not fine:
            right = measured.off <= measured.allowed
            shown += "   TOO LOW" if right else f"   OFF by {measured.off:.1e}, more than {measured.allowed:.1e}"
        say(f"{case.title:{width}}  {measured.kind:11}  {case.claim:7.3g}  {shown}")
        if not fine:
            failed.append(case.title)
        progress.advance()
    progress.close()
    say(f"verify: {len(rows)} orders of {len(SOLVERS)} solvers in {time.perf_counter() - start:.0f} s")
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(rows)} orders fall short, or results are off: {', '.join(dict.fromkeys(failed))}"
        )
