"""What every solver keeps to, whatever its theory: the contract of `samplers.base` and `samplers.sampler`."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.samplers import LAST_STEPS, LinearSolver, Sampler, run
from score_sde.samplers.base import CAPACITY
from score_sde.sde import PROCESSES, VDM, VP, RectifiedFlow
from tests import solving
from tests.solving import BIMODAL, BIMODAL_3, MILD, SOLVERS, every_process, every_solver, keys_of, solver_of

SDE = MILD["vp"]


def x_of(keys, dtype=jnp.float32):
    """States at T of three values, of the size of the noise there."""
    return rng.normal(keys, (3,)).astype(dtype)


# Each of these is a program of its own, by the loop or by the sizes of its plan: `run` does the same for the others.
LOOPS = ["euler_maruyama", "ddim", "sde_dpmpp_3m", "pc"]
every_loop = solving.parametrize([case for case in solving.FIRST if case[0] in LOOPS])
COUNT = 4


@functools.cache
def samples_of(solver, last="none", frames=0, steps=20, keys="sampler"):
    """A run in float32 on a mixture in three dimensions; compiled runs are shared by all tests."""
    drive = solving.compiled(solver, solving.denoiser_of(BIMODAL_3, SDE), last, frames)
    return drive(solving.plan_of(solver, SDE, "uniform", steps), x_of(keys_of(COUNT)), keys_of(COUNT, keys))


@every_solver
def test_runs(solver):
    """Finite, nothing failed, no trajectory where none was asked for; the key is used by stochastic solvers alone."""
    one, other = samples_of(solver), samples_of(solver, keys="other")
    assert np.all(np.isfinite(one.x))
    assert not np.any(one.failed)
    assert one.trajectory is None
    assert one.x.shape == (COUNT, 3)
    assert one.evaluations.shape == one.failed.shape == (COUNT,)
    assert np.array_equal(one.x, other.x) == (not solver.stochastic)
    if isinstance(solver, LinearSolver):
        np.testing.assert_array_equal(one.evaluations, solving.plan_of(solver, SDE).passes)


# --- evaluations -----------------------------------------------------------------------------------------------------


@solving.parametrize([case for case in solving.FIRST if case[0] in ("heun", "unipc", "pc", "ode", "adaptive_sde")])
def test_evaluations_are_those_really_made(solver):
    """A batch of one, every call of the denoiser counted on the host."""
    counter, exact = [], BIMODAL.denoiser(SDE)

    def function(x_t, t, condition):
        jax.debug.callback(lambda _: counter.append(1), x_t)
        return exact.function(x_t, t, condition)

    plan, denoiser = solving.plan_of(solver, SDE, "uniform", 4), dataclasses.replace(exact, function=function)
    samples = jax.jit(lambda x: run(solver, denoiser, plan, x, keys_of(1), last="denoise"))(jnp.full((1, 1), 0.7))
    jax.block_until_ready(samples)
    jax.effects_barrier()
    assert int(samples.evaluations[0]) == len(counter)


@every_solver
def test_evaluations_per_step(solver):
    """Ten more steps cost ten times as many; how a run starts, or a restart, costs the same whatever their number."""
    if solving.is_adaptive(solver):
        assert solver.evaluations_per_step is None
        return
    few, many = (solving.plan_of(solver, SDE, "log_snr", steps) for steps in (10, 20))
    moves = 1 if isinstance(solver, LinearSolver) else solver.evaluations_per_step
    assert (many.passes - few.passes) * moves == 10 * solver.evaluations_per_step
    if solver.evaluations_per_step == 1:
        assert few.passes - 10 <= 4  # at most, of single steps of order 3 to start with


# --- one program -----------------------------------------------------------------------------------------------------

RUNS = (("uniform", 10, "a"), ("uniform", 30, "b"), ("karras", 17, "c"), ("cosine", 50, "a"))


@pytest.mark.parametrize("name", ["unipc", "pc", "ode", "adaptive_sde"])
def test_other_seeds_steps_and_grids_compile_nothing(name):
    """Through the sampler, as `sample` does."""
    sampler = Sampler(solver=solver_of(name, solving.OPTIONS[name][0]))
    denoiser = solving.denoiser_of(BIMODAL_3, SDE)
    program = jax.jit(lambda plan, keys: sampler(denoiser, plan, keys, (3,)))
    for grid, steps, seed in RUNS:
        plan = dataclasses.replace(sampler, grid=grid, steps=steps).plan(SDE)
        assert not np.any(program(plan, keys_of(2, seed)).failed)
    assert program._cache_size() == 1


@every_solver
def test_plans_of_all_steps_and_grids_are_of_one_size(solver):
    """So that what is compiled for one serves all, as above."""
    plans = [solving.plan_of(solver, SDE, grid, steps) for grid, steps, _ in RUNS]
    assert len({str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), plan)) for plan in plans}) == 1


def test_linear_solvers_of_equal_size_are_one_program():
    program = jax.jit(lambda plan, x: run(solving.LINEAR, solving.denoiser_of(BIMODAL_3, SDE), plan, x, keys_of(2)))
    for name in ("ancestral", "sde_dpmpp_1", "reverse_diffusion", "euler_maruyama"):
        program(solving.plan_of(solver_of(name), SDE), x_of(keys_of(2)))
    assert program._cache_size() == 1
    program(solving.plan_of(solver_of("ancestral"), SDE, "uniform", CAPACITY + 1), x_of(keys_of(2)))
    assert program._cache_size() == 2  # beyond the capacity


def _equations(jaxpr, inside):
    """All equations, and the calls of the network among them, by the one operation that only it has here."""
    for equation in jaxpr.eqns:
        inside.append(equation.primitive.name)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            _equations(inner, inside)
    return inside


@solving.linear_solver
def test_the_network_stands_in_the_program_once(solver):
    """Whatever the order: compile time does not grow with stages."""
    denoiser = Denoiser(sde=SDE, function=lambda x, t, condition: jnp.arctan2(x, x + 1))
    plan = solving.plan_of(solver, SDE)
    program = jax.make_jaxpr(lambda plan, x: run(solver, denoiser, plan, x, keys_of(2)))(plan, x_of(keys_of(2)))
    assert _equations(program.jaxpr, []).count("atan2") == 1


# --- what a sample depends on (and see multi_device/test_samplers.py) ------------------------------------------------


LOG_SIGMA_BAR = {"variable": "log_sigma_bar"}
IN_FLOAT32 = [("adaptive_sde", {}, 1e-5), ("ode", LOG_SIGMA_BAR, 1e-5), ("ode", {}, 1e-3)]


@pytest.mark.parametrize(("name", "options", "most"), IN_FLOAT32, ids=[solving.label(*case[:2]) for case in IN_FLOAT32])
def test_in_float32_adaptive_solvers_keep_to_it_within_their_tolerances(name, options, most):
    """At their defaults, by itself and among 64: rounding moves few to other steps, and those by tolerances at most.

    The ODE in t has a last step h ~ 0.05 to t_min = 1e-5, which makes of rounding in x one of h/(2 t_min) as much.
    """
    solver, sde = solver_of(name, options), VP()
    drive = solving.compiled(solver, solving.denoiser_of(BIMODAL_3, sde))
    plan, keys = solving.plan_of(solver, sde, "uniform", 1), keys_of(64)
    together = drive(plan, x_of(keys), keys).x
    alone = jnp.concatenate([drive(plan, x_of(keys[i : i + 1]), keys[i : i + 1]).x for i in range(0, 64, 2)])
    difference = np.abs(np.asarray(alone) - np.asarray(together)[::2]).max(axis=1)
    assert np.median(difference) < most
    assert difference.max() < 10 * solver.rtol


def test_norms_of_the_batch_depend_on_it():
    """The original code's rule, on request."""
    plan, keys = solving.plan_of(solver_of("pc"), SDE), keys_of(8)
    drive = solving.compiled(solver_of("pc", {"batch_norms": True}), solving.denoiser_of(BIMODAL_3, SDE))
    alone, together = drive(plan, x_of(keys)[:1], keys[:1]), drive(plan, x_of(keys), keys)
    assert np.abs(alone.x[0] - together.x[0]).max() > 1e-3


# --- everywhere ------------------------------------------------------------------------------------------------------


@every_process
@solving.every_name
def test_a_few_steps_on_every_process(solver, sde):
    """Any number of steps from one on: on the host, where the coefficients are made."""
    solver.check_process(sde)
    for steps in (1, 2, 4):
        plan = solving.plan_of(solver, sde, "log_snr", steps)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(plan))
        np.testing.assert_array_equal(plan.times, [sde.T, sde.t_min])
        assert sde.t_min - 1e-9 < plan.rows.t.min() <= plan.rows.t.max() <= sde.T + 1e-9
        if isinstance(solver, LinearSolver):
            mean, std = solving.law(plan, sde, 0.0, 1.0)
            assert np.isfinite(mean)
            assert std > 0


# f, g or λ are infinite where a process ends in pure noise: all but these say so.
FROM_NOISE = {
    "reverse_diffusion": {},
    "ancestral": {},
    "pc": {"corrector": "none"},
    "ode": {},
    "euler": {},
    "midpoint": {},
    "heun": {},
    "rk4": {},
    "ddim": {},
    "dpmpp": {"order": 1},
    "sde_dpmpp_1": {},
}


def refuses(solver, sde):
    """Whether the solver refuses a process that ends in pure noise, for that reason."""
    try:
        solver.check_process(sde)
    except UserError as error:
        return "pure noise" in str(error)
    return False


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_run_from_pure_noise_or_say_that_they_cannot(name):
    """The first step leaves T, where x_T says nothing of the data, and D is their mean."""
    sde = RectifiedFlow(T=1.0)
    for options in [*solving.OPTIONS.get(name, ({},)), *([FROM_NOISE[name]] if name in FROM_NOISE else [])]:
        solver = solver_of(name, options)
        if refuses(solver, sde):
            assert FROM_NOISE.get(name) != options
            continue
        plan = solving.plan_of(solver, sde, "uniform", 50)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(plan.rows)[1:]), (name, options)
        if isinstance(solver, LinearSolver):
            mean, std = solving.law(plan, sde, 0.0, 1.0)
            assert mean == pytest.approx(solving.MEAN, abs=0.02)
            assert std == pytest.approx(solving.STD, rel=0.1)


def test_a_learned_process_is_planned_at_its_parameters():
    sde = VDM()
    at = lambda params: solving.solver_of("dpmpp_2m").plan(sde.bind(params), np.linspace(sde.T, sde.t_min, 5))
    first = sde.init()
    other = jax.tree.map(lambda leaf: leaf + 0.3, first)
    np.testing.assert_allclose(at(first).rows.matrix, at(None).rows.matrix, rtol=1e-6)
    assert np.abs(at(other).rows.matrix - at(first).rows.matrix).max() > 1e-3


# --- the last step ---------------------------------------------------------------------------------------------------

NOISE_FIRST = ("EDMSampler", "Restart")  # add theirs before a step, which then leaves a state without


@every_loop
def test_last_step_rules(solver):
    """mean: the state without the last noise, which leaves the other draws alone; denoise: D at t_min of the state."""
    none, mean, denoise = (samples_of(solver, last) for last in LAST_STEPS)
    exact = BIMODAL_3.posterior_mean(SDE, none.x, jnp.full(COUNT, SDE.t_min, jnp.float32))
    np.testing.assert_allclose(denoise.x, exact, rtol=0, atol=1e-5)  # float32, of values of size 1
    np.testing.assert_array_equal(none.evaluations, mean.evaluations)
    np.testing.assert_array_equal(none.evaluations + 1, denoise.evaluations)
    assert np.array_equal(none.x, mean.x) == (not solver.stochastic)


@solving.linear_solver
def test_the_mean_lacks_the_last_noise_alone(solver):
    """The two rows of the last matrix differ in their noises, and in nothing else."""
    plan = solving.plan_of(solver, SDE, "log_snr", 3)
    (x, mean, *_), registers = plan.rows.matrix[plan.passes - 1], plan.rows.matrix.shape[1]
    np.testing.assert_allclose(x[: registers + 2], mean[: registers + 2], rtol=0, atol=1e-12)
    assert not np.any(mean[registers + 2 :])
    assert np.any(x[registers + 2 :]) == (solver.stochastic and type(solver).__name__ not in NOISE_FIRST)


def test_an_unknown_last_rule_is_refused():
    with pytest.raises(UserError, match="last-step rule"):
        run(
            solving.LINEAR,
            BIMODAL.denoiser(SDE),
            solving.plan_of(solving.LINEAR, SDE),
            x_of(keys_of(1)),
            keys_of(1),
            last="men",
        )


# --- the way ---------------------------------------------------------------------------------------------------------


@every_loop
def test_trajectories_do_not_change_the_samples(solver):
    """States before some passes, evenly spread, and D of each; the first is where the run begins."""
    plain, with_frames = samples_of(solver), samples_of(solver, frames=5)
    np.testing.assert_allclose(plain.x, with_frames.x, rtol=1e-4, atol=1e-4)
    if not solving.is_adaptive(solver):
        np.testing.assert_array_equal(plain.evaluations, with_frames.evaluations)
    kept, plan = with_frames.trajectory, solving.plan_of(solver, SDE)
    assert kept.x.shape == kept.denoised.shape == (5, COUNT, 3)
    np.testing.assert_allclose(kept.t, plan.rows.t[np.arange(5) * int(plan.passes) // 5], rtol=1e-6)
    assert np.all(np.diff(kept.t) < 0)
    np.testing.assert_allclose(kept.x[0], x_of(keys_of(COUNT)), rtol=1e-5, atol=1e-6)
    posterior_mean = jax.jit(lambda x, t: BIMODAL_3.posterior_mean(SDE, x, jnp.full(COUNT, t)))
    for t, state, data in zip(kept.t, kept.x, kept.denoised, strict=True):
        np.testing.assert_allclose(data, posterior_mean(state, t), rtol=1e-4, atol=1e-5)


def test_more_frames_than_passes_repeat_states():
    kept = samples_of(solving.LINEAR, frames=5, steps=2).trajectory
    np.testing.assert_allclose(
        kept.t, solving.plan_of(solving.LINEAR, SDE, "uniform", 2).rows.t[[0, 0, 0, 1, 1]], rtol=1e-6
    )


# --- partial ranges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
@pytest.mark.parametrize("grid", ["uniform", "log_snr", "karras"])
def test_refinement_follows_the_flow_from_where_it_starts(sde, grid):
    """x_t at any t: along the exact flow from there."""
    start, points = 0.4 * sde.T, np.linspace(-1, 1, 5)
    sampler = Sampler(solver=solver_of("rk4", {"variable": "log_sigma_bar"}), grid=grid, steps=60)
    plan = sampler.plan(sde, start)
    np.testing.assert_array_equal(plan.times, [start, sde.t_min])
    with jax.enable_x64(True):
        denoiser = solving.denoiser_of(BIMODAL, sde)
        refine = jax.jit(lambda plan, x: sampler.refine(denoiser, plan, x, keys_of(5)))
        x = np.asarray(refine(plan, jnp.asarray(points)[:, None]).x)[:, 0]
    np.testing.assert_allclose(x, BIMODAL.flow(sde, points, start, sde.t_min), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
@pytest.mark.parametrize("name", ["sde_dpmpp_2m", "dpmpp_3m", "unipc", "seeds_2", "heun"])
def test_noise_and_back_is_the_data(sde, name):
    """Image-to-image on a Gaussian: what noise took to t comes back with the law of the data (exactly, by matrices)."""
    start = 0.5 * sde.T
    plan = Sampler(solver=solver_of(name), grid="log_snr", steps=100).plan(sde, start)
    back = solving.law(plan, sde, *solving.marginal(sde, start))
    np.testing.assert_allclose(back, solving.marginal(sde, sde.t_min), rtol=2e-3)


def test_grids_that_begin_later_begin_with_less_noise():
    sde = VP()
    for start in (None, 0.3):
        sampler = Sampler(solver=solving.LINEAR, steps=5)
        plan = sampler.plan(sde, start)
        x = np.asarray(jax.jit(sampler.noise, static_argnums=(0, 3))(sde, plan, keys_of(64), (64,)))
        sigma = float(sde.sigma(jnp.asarray(plan.times[0], jnp.float32)))
        assert x.std() / sigma == pytest.approx(1, abs=5 / np.sqrt(2 * x.size))


# --- failures --------------------------------------------------------------------------------------------------------


def test_an_ode_that_gives_up_says_so():
    """A field that is not finite: failed, for that sample alone."""
    sde = PROCESSES["vp"]()
    function = lambda x, t, condition: jnp.where(x > 0, jnp.nan, x)
    plan = solving.plan_of(solver_of("ode"), sde, "uniform", 2)
    samples = run(
        solver_of("ode"), Denoiser(sde=sde, function=function), plan, jnp.asarray([[1.0], [-1.0]]), keys_of(2)
    )
    np.testing.assert_array_equal(samples.failed, [True, False])
    assert np.isnan(samples.x[0, 0])


def test_an_adaptive_sde_that_gives_up_says_so():
    solver = solver_of("adaptive_sde", {"rtol": 1e-3, "atol": 1e-3, "max_attempts": 5})
    drive = solving.compiled(solver, solving.denoiser_of(BIMODAL_3, SDE))
    samples = drive(solving.plan_of(solver, SDE, "uniform", 1), x_of(keys_of(2)), keys_of(2))
    assert np.all(samples.failed)
    np.testing.assert_array_equal(samples.evaluations, [10, 10])


@pytest.mark.parametrize("last", LAST_STEPS)
def test_samples_that_are_not_finite_are_said_to_have_failed(last):
    """A denoiser that is broken for the second of three samples."""
    function = lambda x_t, t, condition: jnp.where(x_t > 1e3, jnp.nan, 0.5 * x_t)
    plan = solving.plan_of(solving.LINEAR, VP(), "uniform", 3)
    x = jnp.asarray([[1.0], [2e3], [-1.0]])
    result = run(solving.LINEAR, Denoiser(sde=VP(), function=function), plan, x, keys_of(3), last=last)
    np.testing.assert_array_equal(result.failed, [False, True, False])
