"""Samples in float32, with their own random numbers: their law is the exact one, up to Monte-Carlo error.

Langevin moves, which have no order, and the adaptive SDE, whose steps are its own, are tested for theirs here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracles, rng
from score_sde.samplers import LinearSolver, Sampler, run
from score_sde.sde.brownian import BrownianPath
from tests import solving
from tests.solving import MEAN, MILD, SCALAR, STD, every_process, keys_of, solver_of

SHAPE, COUNT, STEPS, MIXTURE_STEPS = (4, 4, 2), 256, 100, 100
GAUSSIAN = oracles.gaussian(MEAN, STD, SHAPE)
# A stationary Langevin move of snr r on a Gaussian inflates its variance to 1/(1 − r²).
LANGEVIN_BIAS = 1 / (1 - 0.16**2) - 1
ADAPTIVE_SDE_BIAS = 0.03  # at the tolerances of the battery; that it vanishes with them is shown below

ON_VE = ("ancestral", "pc", "sde_dpmpp_3m")  # what differs from VP is in the plan, and its law exact in the other files
LAWS = [("vp", case) for case in solving.FIRST] + [("ve", case) for case in solving.FIRST if case[0] in ON_VE]


@pytest.mark.parametrize(("process", "case"), LAWS, ids=[f"{process}-{case[0]}" for process, case in LAWS])
def test_samples_of_a_gaussian(process, case):
    """Mean and variance over 8192 values: the law of this very discretisation, to Monte-Carlo error alone.

    For solvers without such a law: the target's, to Monte-Carlo error and the solver's own documented bias.
    """
    sde, solver = MILD[process], solver_of(*case)
    sampler = Sampler(solver=solver, steps=STEPS)
    plan, keys = sampler.plan(sde), keys_of(COUNT)
    drive = solving.compiled(
        solver, solving.denoiser_of(GAUSSIAN, sde)
    )  # as the sampler does, compiled for all of them
    samples = drive(plan, sampler.noise(sde, plan, keys, SHAPE), rng.child(keys, 1))
    x = np.asarray(samples.x, np.float64)
    assert x.shape == (COUNT, *SHAPE)
    assert not np.any(samples.failed)
    (level,) = solving.Schedule.of(sde).at([sde.T])
    start, end = (solving.marginal(sde, t) for t in (sde.T, sde.t_min))
    if isinstance(solver, LinearSolver):
        (mean, std), bias = solving.law(plan, sde, 0.0, level.sigma), 1e-5  # float32
    elif solver.stochastic:
        # Two Langevin moves a step at most double nothing: each leaves 1/(1 − r²); first order besides.
        mean, std = end
        bias = ADAPTIVE_SDE_BIAS if solving.is_adaptive(solver) else LANGEVIN_BIAS + 4 / STEPS
    else:  # the exact flow map, from the prior instead of p_T
        scale = end[1] / start[1]
        mean, std, bias = end[0] - scale * start[0], scale * level.sigma, 1e-3
    assert abs(x.mean() - mean) < (5 / np.sqrt(x.size) + bias) * std
    assert abs(x.var() / std**2 - 1) < 5 * np.sqrt(2 / x.size) + 2 * bias


@functools.cache
def _two_modes():
    """Two far modes in 32 dimensions."""
    return oracles.mixture((0.3, 0.7), (-0.8, 0.6), (0.2, 0.3), SHAPE)


@solving.every_name
def test_samples_of_a_mixture(solver):
    """From x_T ~ p_T: the share of each mode, and mean and spread within each."""
    weights, count, target, sde = (0.3, 0.7), COUNT, _two_modes(), MILD["vp"]
    start, end = target.marginal(sde, sde.T), target.marginal(sde, sde.t_min)
    x_T = start.sample(count, 0)
    plan = solving.plan_of(solver, sde, "uniform", MIXTURE_STEPS)
    drive = solving.compiled(solver, solving.denoiser_of(target, sde))
    x = np.asarray(drive(plan, jnp.asarray(x_T, jnp.float32), keys_of(count)).x, np.float64).reshape(count, -1)
    in_first = x.mean(axis=1) < -0.1  # the modes are 1.4 apart and their means spread by 0.3/√32
    assert abs(in_first.mean() - weights[0]) < 5 * np.sqrt(0.21 / count)
    bias = LANGEVIN_BIAS if solving.is_langevin(solver) else 0
    bias += ADAPTIVE_SDE_BIAS if solver.stochastic and solving.is_adaptive(solver) else 0
    for k, points in enumerate((x[in_first], x[~in_first])):
        mean, std = end.means[k].flat[0], end.stds[k].flat[0]
        # Monte Carlo; an allowance of 2/steps for the first-order bias (an estimate, not a bound); Langevin.
        assert abs(points.mean() - mean) < (5 / np.sqrt(points.size) + 2 / MIXTURE_STEPS + bias) * std
        assert abs(points.var() / std**2 - 1) < 5 * np.sqrt(2 / points.size) + 2 * (2 / MIXTURE_STEPS + bias)


# --- Langevin --------------------------------------------------------------------------------------------------------


@every_process
def test_langevin_keeps_a_gaussian_up_to_its_step(sde):
    """On N(0, v) in many dimensions |score|² ≈ D/v, so that x → (1 − 2r²c) x + 2r√(c v) z, c = (α_t/α_s)².

    From variance v the move leads to v ((1 − 2r²c)² + 4r²c) = v (1 + 4 r⁴ c²). Without predictor it is made at s.
    """
    t, s, r, values = 0.5 * sde.T, 0.45 * sde.T, 0.16, 1024
    solver = solver_of("pc", {"predictor": "none", "snr": r})
    std = solving.marginal(sde, s, 0.0, STD)[1]
    denoiser = oracles.gaussian(0.0, STD, (1,)).denoiser(sde)  # broadcasts
    x = std * np.random.default_rng(0).normal(size=(64, values))
    # One step of the grid is one move, whose draws are a function of the plan and the keys.
    drive = jax.jit(lambda plan, x: run(solver, denoiser, plan, x, keys_of(64)).x)
    moved = np.asarray(drive(solving.plan_of(solver, sde, times=(t, s)), jnp.asarray(x, jnp.float32)), np.float64)
    at_t, at_s = solving.Schedule.of(sde).at([t, s])
    c = (at_t.alpha / at_s.alpha) ** 2
    # 65536 values: 5 standard errors are 3 %, less than the 4 r² c = 10 % of noise, were it without its drift.
    assert abs(moved.var() / std**2 / (1 + 4 * r**4 * c**2) - 1) < 5 * np.sqrt(2 / moved.size)
    gain = np.mean(moved * x) / np.mean(x**2)
    assert abs(gain - (1 - 2 * r**2 * c)) < 5 * 2 * r / np.sqrt(moved.size) + 2e-3  # |score|² is D/v to √(2/1024)/√64


@pytest.mark.parametrize(("process", "last"), [("vp", "none"), ("ve", "none"), ("ve", "denoise")])
def test_langevin_alone_ends_at_the_last_level(process, last):
    """Annealed Langevin dynamics on narrow data: what is left is noise of the level t_min, and D takes it out there.

    A move x → (1 − h/v) x + √(2h) z, h = 2 c (r σ)², leaves v/(1 − h/(2v)) on a Gaussian of variance v; c that of the
    last step.
    """
    sde, r, narrow = MILD[process], 0.16, 0.02
    solver = solver_of("pc", {"predictor": "none", "corrector": "annealed_langevin", "corrector_steps": 100, "snr": r})
    denoiser = oracles.gaussian(0.0, narrow, (1024,)).denoiser(sde)
    plan = solving.plan_of(solver, sde, "log_snr", 4)
    drive = jax.jit(lambda plan, x: run(solver, denoiser, plan, x, keys_of(16), last=last))
    samples = drive(plan, jnp.full((16, 1024), 0.1, jnp.float32))
    before, end = solving.Schedule.of(sde).at(Sampler(solver=solver, grid="log_snr", steps=4).times_of(sde)[-2:])
    v = (end.alpha * narrow) ** 2 + end.sigma**2
    h = 2 * (before.alpha / end.alpha) ** 2 * (r * end.sigma) ** 2
    expected = np.sqrt(v / (1 - h / (2 * v))) * (end.alpha * narrow**2 / v if last == "denoise" else 1)
    assert np.std(samples.x) == pytest.approx(expected, rel=5 / np.sqrt(2 * samples.x.size))
    np.testing.assert_array_equal(samples.evaluations, 400 + (last == "denoise"))


# --- adaptive SDE ----------------------------------------------------------------------------------------------------


def _adaptive(tolerance, oracle, sde, x_T):
    solver = solver_of("adaptive_sde", {"rtol": tolerance, "atol": tolerance})
    drive = solving.compiled(solver, solving.denoiser_of(oracle, sde))
    samples = drive(solving.plan_of(solver, sde, "uniform", 1), jnp.asarray(x_T, jnp.float32), keys_of(len(x_T)))
    assert not np.any(samples.failed)
    return np.asarray(samples.x, np.float64), float(np.mean(samples.evaluations))


def test_the_adaptive_sde_is_unbiased():
    """Mean and variance of 32768 scalars converge to those of the data, steps being rejected all the way.

    With new noise for a step that is tried again, noise that leads to large errors is left out: the variance then stays
    wrong, however small the tolerance.
    """
    sde, count = MILD["vp"], 32768
    (mean, std), start = solving.marginal(sde, sde.t_min), solving.marginal(sde, sde.T)
    x_T = start[0] + start[1] * np.random.default_rng(1).normal(size=(count, 1))
    errors, evaluations = [], []
    for tolerance in (0.1, 0.01):
        x, spent = _adaptive(tolerance, SCALAR, sde, x_T)
        errors.append((abs(x.mean() - mean) / std, abs(x.var() / std**2 - 1)))
        evaluations.append(spent)
    assert evaluations[0] < evaluations[1]
    assert errors[1][0] < 4 / np.sqrt(count) + 0.002, errors
    assert errors[1][1] < 4 * np.sqrt(2 / count) + 0.004, errors


def test_the_paths_noise_does_not_depend_on_the_steps():
    """The noise of a step is the sum of those of its parts, and has the variance of its length."""
    keys = keys_of(4096)

    def noises(key):
        path = BrownianPath(0.0, 1.0, jnp.zeros(()), key)
        return jnp.stack([path.change(a, b) for a, b in ((0.3, 0.7), (0.3, 0.4), (0.4, 0.55), (0.55, 0.7))])

    whole, *parts = np.asarray(jax.jit(jax.vmap(noises))(keys)).T
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=0, atol=1e-5)
    for values, length in zip((whole, *parts), (0.4, 0.1, 0.15, 0.15), strict=True):
        assert abs(values.var() / length - 1) < 5 * np.sqrt(2 / len(keys))
    assert abs(np.corrcoef(parts)[0, 1:]).max() < 5 / np.sqrt(len(keys))
