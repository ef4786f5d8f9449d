r"""Every solver converges with the order that it claims, on targets whose solution is known.

A mixture in one dimension has an exact probability flow (`Mixture.flow`), which no solver's code knows of: strong
orders of the solvers of ODEs. A Gaussian target makes every step affine in the state and in the noise, so that the
mean and the variance of the output are computed exactly (`solving.law`), without any Monte-Carlo error: weak orders.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.samplers import LinearSolver, Solver
from tests import solving
from tests.solving import BIMODAL, MILD, SOLVERS, solver_of

STEPS = (64, 128)
# Where two terms of the error cancel at some number of steps, it takes more of them to see the order.
MORE_STEPS = {"sa_solver-predictor_order=3-corrector_order=3-tau=0.0": (256, 512)}
SHORT = 0.2  # of the order, by which the slope may fall short: what is left of the next order at so many steps
OVER = 0.35  # a claim is not too modest either

ORDERED = [case for case in solving.CASES if solver_of(*case).convergence is not None]
STRONG = [case for case in ORDERED if not solver_of(*case).stochastic]
RESTART = {"low": (0.3,), "high": (1.0,)}
WEAK = [
    (name, options)
    for name, options in ORDERED
    if solver_of(name, options).stochastic and isinstance(solver_of(name, options), LinearSolver)
]


def slope(errors: list[float], steps: tuple[int, ...]) -> float:
    return float(np.log(errors[-2] / errors[-1]) / np.log(steps[-1] / steps[-2]))


@functools.cache
def exact_flow() -> tuple[np.ndarray, np.ndarray]:
    """Points at T, and where the flow takes them."""
    points = np.linspace(-2, 2, 9)
    return points, BIMODAL.flow(MILD["vp"], points, MILD["vp"].T, MILD["vp"].t_min)


def flow_error(solver: Solver, steps: int, grid: str = "log_snr") -> float:
    """Of the points, root mean square, in float64."""
    sde, (points, exact) = MILD["vp"], exact_flow()
    with jax.enable_x64(True):
        drive = solving.compiled(solver, solving.denoiser_of(BIMODAL, sde))
        x = drive(solving.plan_of(solver, sde, grid, steps), jnp.asarray(points)[:, None], solving.keys_of(9)).x
        return float(np.sqrt(np.mean((np.asarray(x)[:, 0] - exact) ** 2)))


@pytest.mark.parametrize(("name", "options"), STRONG, ids=[solving.label(*case) for case in STRONG])
def test_strong_order_on_a_mixture(name, options):
    """Each point of a bimodal target against where the exact probability flow takes it."""
    solver, steps = solver_of(name, options), MORE_STEPS.get(solving.label(name, options), STEPS)
    measured = slope([flow_error(solver, count) for count in steps], steps)
    assert measured > solver.convergence - SHORT, measured
    if not {"start", "last_order"} & set(options):
        assert measured < solver.convergence + OVER, measured


LOWERED = [
    ("dpmpp_3m", {"start": "cheap"}),
    ("dpmpp_3m", {"last_order": 1}),
    ("lms", {"order": 4, "start": "cheap"}),
    ("lms", {"order": 4, "last_order": 2}),
    ("deis", {"order": 3, "start": "cheap"}),
    ("deis", {"order": 3, "last_order": 1}),
    ("unipc", {"order": 3, "start": "cheap"}),
    ("unipc", {"order": 3, "start": "cheap", "corrector": False}),
    ("unipc", {"order": 3, "last_order": 1}),
    ("unipc", {"order": 3, "last_order": 2}),
]


@pytest.mark.parametrize(("name", "options"), LOWERED, ids=[solving.label(*case) for case in LOWERED])
def test_lowered_orders_are_what_is_left(name, options):
    """A cheap start or last step, over a short range, where its error shows beside the others: no more and no less."""
    solver, sde, (first, last) = solver_of(name, options), MILD["vp"], (0.3, 0.2)
    assert solver.convergence < solver_of(name, {**options, "start": "exact", "last_order": 0}).convergence
    points, errors, steps = np.linspace(-2, 2, 9), [], (32, 64)
    exact = BIMODAL.flow(sde, points, first, last)
    for count in steps:
        plan = solving.plan_of(solver, sde, times=tuple(np.linspace(first, last, count + 1)))
        with jax.enable_x64(True):
            drive = solving.compiled(solver, solving.denoiser_of(BIMODAL, sde))
            x = drive(plan, jnp.asarray(points)[:, None], solving.keys_of(9)).x
        errors.append(np.sqrt(np.mean((np.asarray(x)[:, 0] - exact) ** 2)))
    assert abs(slope(errors, steps) - solver.convergence) < 0.1, errors


@pytest.mark.parametrize("grid", ["uniform", "karras", "cosine"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("dpmpp_3m", {}), ("unipc", {"order": 2}), ("deis", {"order": 3}), ("rk4", {}), ("edm", {}), ("dpm2", {})],
)
def test_the_order_does_not_depend_on_the_grid(name, options, grid):
    solver = solver_of(name, options)
    steps = (256, 512)
    measured = slope([flow_error(solver, count, grid) for count in steps], steps)
    assert solver.convergence - SHORT < measured < solver.convergence + OVER, measured


# Of the issue that asked for them: what the published forms do and what a cheap start costs, said by `convergence`.
CLAIMS = {
    3: [("dpmpp_3m", {}), ("unipc", {"order": 2}), ("unipc", {"order": 3, "start": "cheap"}), ("deis", {"order": 3})],
    2: [
        ("dpmpp_3m", {"compat": True}),
        ("dpmpp_3m", {"start": "cheap"}),
        ("dpmpp_3m", {"last_order": 1}),
        ("lms", {"order": 4, "start": "cheap"}),
        ("deis", {"order": 3, "last_order": 1}),
        ("unipc", {"order": 3, "corrector": False, "start": "cheap"}),
        ("unipc", {"order": 1}),
        ("unipc", {"order": 3, "last_order": 1}),
        ("sde_dpmpp_2m", {}),
        ("sde_dpmpp_3m", {}),
        ("sa_solver", {}),
        ("seeds_2", {}),
    ],
    4: [("unipc", {"order": 3}), ("lms", {"order": 4}), ("rk4", {})],
    1: [
        ("unipc", {"order": 1, "corrector": False}),
        ("sde_dpmpp_1", {}),
        ("sa_solver", {"predictor_order": 1, "corrector_order": 0}),
    ],
}


@pytest.mark.parametrize("order", CLAIMS)
def test_claims(order):
    for name, options in CLAIMS[order]:
        assert solver_of(name, options).convergence == order, (name, options)


@solving.mild_process
@pytest.mark.parametrize(("name", "options"), WEAK, ids=[solving.label(*case) for case in WEAK])
def test_weak_order_on_a_gaussian(name, options, sde):
    """From the exact law at T to the exact law at t_min: errors of mean and standard deviation, by step count."""
    solver, steps, errors = solver_of(name, options), (128, 256), []
    start, end = (solving.marginal(sde, t) for t in (sde.T, sde.t_min))
    for count in steps:
        output = solving.law(solving.plan_of(solver, sde, "log_snr", count), sde, *start)
        errors.append(np.abs(np.subtract(output, end)))
    for before, after in np.transpose(errors):
        if before > 1e-12:  # some are exact
            measured = slope([before, after], steps)
            assert measured > solver.convergence - SHORT, (measured, errors)


def test_restart_has_an_order_only_if_its_own_steps_grow_with_the_runs():
    sde, steps = MILD["vp"], (128, 256)
    start, end = (solving.marginal(sde, t) for t in (sde.T, sde.t_min))

    def std_error(count: int, own_steps: int) -> float:
        solver = solver_of("restart", {**RESTART, "restart_steps": (own_steps,)})
        return abs(solving.law(solving.plan_of(solver, sde, "log_snr", count), sde, *start)[1] - end[1])

    assert solver_of("restart", RESTART).convergence is None
    assert solver_of("restart", {"repeats": (0,)}).convergence == 2
    assert abs(slope([std_error(count, 3) for count in steps], steps)) < 0.2
    assert slope([std_error(count, count // 4) for count in steps], steps) > 2 - SHORT


ADAPTIVE = [name for name in SOLVERS if solving.is_adaptive(solver_of(name)) and not solver_of(name).stochastic]
TOLERANCES = (1e-4, 1e-7)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_error_falls_with_the_tolerance(name):
    """Against the exact flow of a mixture; a step's error is held at the tolerance, and some tens of steps add up."""
    sde = MILD["ve"]
    x_T = np.linspace(-2, 2, 5) * np.sqrt(BIMODAL.marginal(sde, sde.T).variance()[0])
    exact = BIMODAL.flow(sde, x_T, sde.T, sde.t_min)
    errors, evaluations = [], []
    with jax.enable_x64(True):
        for tolerance in TOLERANCES:
            solver = solver_of(name, {"rtol": tolerance, "atol": tolerance})
            drive = solving.compiled(solver, solving.denoiser_of(BIMODAL, sde))
            samples = drive(solving.plan_of(solver, sde, "uniform", 1), jnp.asarray(x_T)[:, None], solving.keys_of(5))
            errors.append(np.abs(np.asarray(samples.x)[:, 0] - exact).max())
            evaluations.append(int(samples.evaluations.max()))
    assert np.all(np.array(errors) < 30 * np.array(TOLERANCES)), errors
    # A method of order 5 gains a factor 1000 for 1000^(1/5) = 4 times the steps; 6 with rejected steps.
    assert evaluations[0] < evaluations[1] < 6 * evaluations[0]


METHODS = [("dopri5", "log_sigma_bar"), ("dopri8", "t"), ("kvaerno5", "t")]  # tsit5 in t is the default


@pytest.mark.parametrize(("method", "variable"), METHODS)
def test_methods_of_the_adaptive_ode(method, variable):
    """Each against the exact flow."""
    sde, (points, exact) = MILD["vp"], exact_flow()
    solver = solver_of("ode", {"rtol": 1e-7, "atol": 1e-7, "method": method, "variable": variable})
    with jax.enable_x64(True):
        drive = solving.compiled(solver, solving.denoiser_of(BIMODAL, sde))
        samples = drive(solving.plan_of(solver, sde, "uniform", 1), jnp.asarray(points)[:, None], solving.keys_of(9))
        assert not np.any(samples.failed)
        assert np.abs(np.asarray(samples.x)[:, 0] - exact).max() < 3e-6


def test_no_order_where_a_run_has_none():
    for options in ({}, {"predictor": "none"}, {"corrector": "annealed_langevin"}):
        assert solver_of("pc", options).convergence is None
    assert solver_of("edm", {"churn": 5.0, "noise_scale": 1.007}).convergence is None
    assert solver_of("edm", {"noise_scale": 1.007}).convergence == 2  # no noise, no scale
