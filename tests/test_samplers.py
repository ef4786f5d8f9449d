r"""One battery over every solver, on targets whose solution is known, and the identities of each family.

A Gaussian target makes every step affine in the state and in the noise it draws, so that the mean and variance of
the output are computed exactly, without any Monte-Carlo error: `_output_law` feeds the solver noise of its own.
A mixture in one dimension has an exact probability flow (`oracles.Mixture.flow`), which no solver's code knows of.
"""

import contextlib
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
from score_sde.samplers import GRIDS, LAST_STEPS, Sampler, run
from score_sde.samplers import SOLVERS as ALL_SOLVERS
from score_sde.samplers.predictor_corrector import PREDICTORS
from score_sde.sde import PROCESSES, SDE, VE, VP, Options, RectifiedFlow
from score_sde import oracles

# Those of affine processes; the others are in test_cld.py.
SOLVERS = {name: solver for name, solver in ALL_SOLVERS.items() if issubclass(SDE, solver.processes)}
# Options under which a solver is tested; a name that is not here is tested with its defaults.
OPTIONS = {
    "euler_maruyama": [{}, {"eta": 0.0}],
    "ddim": [{}, {"eta": 1.0}],
    "pc": [{}, {"corrector": "none"}, {"predictor": "ancestral", "corrector_steps": 2}],
    "ode": [{"rtol": 1e-5, "atol": 1e-5}],
}
# Langevin moves of fixed snr are no approximation of anything as the steps shrink: they have no order.
NO_ORDER = {("pc", "langevin")}
# A stationary Langevin move of snr r on a Gaussian inflates its variance to 1/(1 − r²).
LANGEVIN_BIAS = 1 / (1 - 0.16**2) - 1

CASES = [(name, options) for name in SOLVERS for options in OPTIONS.get(name, [{}])]
solver_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]
)
process = pytest.mark.parametrize("sde", [PROCESSES[name]() for name in PROCESSES], ids=list(PROCESSES))

# Mild processes, so that few steps are in the asymptotic regime.
MILD = {"vp": VP(beta_max=6.0, t_min=0.05), "ve": VE(sigma_min=0.05, sigma_max=5.0, t_min=0.0)}
MEAN, STD = 0.5, 0.4
BIMODAL = oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.15, 0.25], (1,))


def _solver(name, options, denoiser):
    return SOLVERS[name](denoiser=denoiser, **options)


def _is_langevin(solver):
    return getattr(solver, "corrector", "none") != "none"


def _keys(count, name="sampler"):
    return rng.for_samples(rng.stream(0, name), jnp.arange(count))


# --- exact law of the output ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _noise(supply):
    """While this lasts, `rng.normal` hands out slices of `supply`, `(draws, batch, *shape)`, one a call."""
    calls = iter(supply)
    original, rng.normal = rng.normal, lambda keys, shape, dtype=None: next(calls)
    try:
        yield
    finally:
        rng.normal = original


DRAWS = 2  # at most, of a solver in one step


def _drive(solver, x_T, grid, noise):
    """The solver along the grid in the dtype of x_T; noise `(steps, DRAWS, batch, *shape)`."""
    grid = np.asarray(grid, np.float64)

    def body(carry, step):
        t, s, draws = step
        ones = jnp.ones(x_T.shape[0], x_T.dtype)
        with _noise(draws):
            return solver.step(carry, t * ones, s * ones, _keys(x_T.shape[0])), None

    carry, _ = jax.lax.scan(body, solver.init(x_T, grid), (jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]), noise))
    return carry


def _output_law(solver, sde, grid, x_T_mean, x_T_std):
    """Exact mean and standard deviation of what the solver makes of x_T ~ N(mean, std²), for a Gaussian target.

    The output is affine: x = A x_T + b + Σ c_i z_i. b from zeros, A and all c_i as derivatives.
    """

    def output(x_T, noise):
        return _drive(solver, x_T[None, None], grid, noise).x[0, 0]

    with jax.enable_x64(True):
        noise = jnp.zeros((len(grid) - 1, DRAWS, 1, 1), jnp.float64)
        value_and_grad = jax.jit(jax.value_and_grad(output, argnums=(0, 1)))
        offset, (gain, responses) = value_and_grad(jnp.asarray(x_T_mean, jnp.float64), noise)
        return float(offset), float(jnp.sqrt((gain * x_T_std) ** 2 + jnp.sum(responses**2)))


ORDERED = [
    (name, options)
    for name, options in CASES
    if SOLVERS[name](denoiser=None, **options).evaluations_per_step is not None  # type: ignore[arg-type]
    and not _is_langevin(SOLVERS[name](denoiser=None, **options))  # type: ignore[arg-type]
]
ordered_case = pytest.mark.parametrize(
    ("name", "options"), ORDERED, ids=[f"{name}-{'-'.join(map(str, options.values()))}" for name, options in ORDERED]
)


def _check_order(errors, order):
    """Errors at doubling step counts fall as 2^−order; 0.15 is what is left of the next order at these counts."""
    errors = np.asarray(errors)
    slopes = np.log2(errors[:-1] / errors[1:])
    assert np.all(slopes > order - 0.15), (errors, slopes)
    return slopes


@ordered_case
@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
def test_weak_order_on_a_gaussian(name, options, sde):
    """From the exact law at T to the exact law at t_min: the errors of mean and standard deviation, by step count."""
    target = oracles.gaussian(MEAN, STD, (1,))
    solver = _solver(name, options, target.denoiser(sde))
    start, end = target.marginal(sde, sde.T), target.marginal(sde, sde.t_min)
    errors = []
    for steps in (64, 128, 256):
        mean, std = _output_law(
            solver, sde, GRIDS["uniform"](sde, steps), start.mean()[0], np.sqrt(start.variance()[0])
        )
        errors.append((abs(mean - end.mean()[0]), abs(std - np.sqrt(end.variance()[0]))))
    for error in np.transpose(errors):
        if error.max() > 1e-10:  # some are exact
            slopes = _check_order(error, solver.order)
            assert np.all(slopes < solver.order + 1.5)


def _is_deterministic(name, options):
    return not SOLVERS[name](denoiser=None, **options).stochastic  # type: ignore[arg-type]


ADAPTIVE = [name for name, cls in SOLVERS.items() if cls(denoiser=None).evaluations_per_step is None]  # type: ignore[arg-type]
DETERMINISTIC = [(name, options) for name, options in ORDERED if _is_deterministic(name, options)]


@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=[f"{n}-{o}" for n, o in DETERMINISTIC])
def test_strong_order_on_a_mixture(name, options):
    """Each point of a bimodal target against where the exact probability flow takes it."""
    sde = MILD["vp"]
    solver = _solver(name, options, BIMODAL.denoiser(sde))
    x_T = np.linspace(-2, 2, 9)
    exact = BIMODAL.flow(sde, x_T, sde.T, sde.t_min)
    errors = []
    with jax.enable_x64(True):
        for steps in (64, 128, 256):
            noise = jnp.zeros((steps, DRAWS, 9, 1), jnp.float64)
            drive = jax.jit(lambda x, noise, steps=steps: _drive(solver, x, GRIDS["log_snr"](sde, steps), noise).x)
            errors.append(np.sqrt(np.mean((np.asarray(drive(jnp.asarray(x_T)[:, None], noise))[:, 0] - exact) ** 2)))
    _check_order(errors, solver.order)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
def test_adaptive_solvers_error_falls_with_the_tolerance(name, sde):
    """Against the exact flow of a mixture; a step's error is held at the tolerance, and some tens of steps add up."""
    x_T = np.linspace(-2, 2, 5) * np.sqrt(BIMODAL.marginal(sde, sde.T).variance()[0])
    exact = BIMODAL.flow(sde, x_T, sde.T, sde.t_min)
    errors, evaluations = [], []
    with jax.enable_x64(True):
        for tolerance in (1e-4, 1e-6, 1e-8):
            solver = _solver(name, {"rtol": tolerance, "atol": tolerance}, BIMODAL.denoiser(sde))
            noise = jnp.zeros((1, DRAWS, 5, 1), jnp.float64)
            carry = jax.jit(lambda x, solver=solver, noise=noise: _drive(solver, x, [sde.T, sde.t_min], noise))(
                jnp.asarray(x_T)[:, None]
            )
            errors.append(np.abs(np.asarray(carry.x)[:, 0] - exact).max())
            evaluations.append(int(carry.evaluations.max()))
    assert np.all(np.array(errors) < 30 * np.array([1e-4, 1e-6, 1e-8])), errors
    # A method of order 5 gains a factor 100 for 100^(1/5) = 2.5 times the steps; 4 with rejected steps.
    assert np.all(np.diff(evaluations) > 0)
    assert np.all(np.array(evaluations[1:]) < 4 * np.array(evaluations[:-1]))


# --- whole runs in float32, with their own random numbers ----------------------------------------------------------

SHAPE, COUNT, STEPS, MIXTURE_STEPS = (4, 4, 2), 256, 100, 100


@functools.cache
def _sampler(name, options, process_name, target, last="none", steps=STEPS, grid="uniform"):
    """Jitted keys -> Samples."""
    sde = MILD.get(process_name) or PROCESSES[process_name]()
    sampler = Sampler(solver=SOLVERS[name], options=dict(options), grid=grid, steps=steps, last=last)
    return jax.jit(lambda keys: sampler(target.denoiser(sde), keys, target.shape))


GAUSSIAN = oracles.gaussian(MEAN, STD, SHAPE)
SCALAR = oracles.gaussian(MEAN, STD, (1,))


@solver_case
@pytest.mark.parametrize("process_name", MILD)
def test_samples_of_a_gaussian(name, options, process_name):
    """Mean and variance over 8192 values: the law of this very discretisation, to Monte-Carlo error alone.

    For solvers without such a law: the target's, to Monte-Carlo error and the solver's own documented bias.
    """
    sde = MILD[process_name]
    samples = _sampler(name, tuple(options.items()), process_name, GAUSSIAN)(_keys(COUNT))
    x = np.asarray(samples.x, np.float64)
    assert x.shape == (COUNT, *SHAPE)
    assert not np.any(samples.failed)
    solver = _solver(name, options, SCALAR.denoiser(sde))
    prior_std = float(sde.sigma(jnp.asarray(sde.T)))
    if solver.evaluations_per_step is None:
        start, end = (SCALAR.marginal(sde, t) for t in (sde.T, sde.t_min))
        scale = np.sqrt(end.variance()[0] / start.variance()[0])  # the exact flow map, from the prior instead of p_T
        mean, std, bias = end.mean()[0] + scale * (0 - start.mean()[0]), scale * prior_std, 1e-3
    elif _is_langevin(solver):
        end = SCALAR.marginal(sde, sde.t_min)
        mean, std = end.mean()[0], np.sqrt(end.variance()[0])
        # Two Langevin moves a step at most double nothing: each leaves 1/(1 − r²); first order in 200 steps besides.
        bias = LANGEVIN_BIAS + 4 / STEPS
    else:
        mean, std = _output_law(solver, sde, GRIDS["uniform"](sde, STEPS), 0.0, prior_std)
        bias = 1e-5  # float32
    assert abs(x.mean() - mean) < (5 / np.sqrt(x.size) + bias) * std
    assert abs(x.var() / std**2 - 1) < 5 * np.sqrt(2 / x.size) + 2 * bias


@solver_case
def test_samples_of_a_mixture(name, options):
    """Two far modes in 32 dimensions, from x_T ~ p_T: the share of each, and mean and spread within each."""
    weights, count = (0.3, 0.7), 512
    target = oracles.mixture(weights, (-0.8, 0.6), (0.2, 0.3), SHAPE)
    sde = MILD["vp"]
    start, end = target.marginal(sde, sde.T), target.marginal(sde, sde.t_min)
    generator = np.random.default_rng(0)
    component = generator.choice(2, count, p=weights)
    x_T = start.means[component] + start.stds[component] * generator.normal(size=(count, *SHAPE))
    solver, grid = _solver(name, options, target.denoiser(sde)), GRIDS["uniform"](sde, MIXTURE_STEPS)
    samples = jax.jit(lambda x, keys: run(solver, x, grid, keys))(jnp.asarray(x_T, jnp.float32), _keys(count))
    x = np.asarray(samples.x, np.float64).reshape(count, -1)
    in_first = x.mean(axis=1) < -0.1  # the modes are 1.4 apart and their means spread by 0.3/√32
    assert abs(in_first.mean() - weights[0]) < 5 * np.sqrt(0.21 / count)
    bias = LANGEVIN_BIAS if _is_langevin(solver) else 0
    for k, points in enumerate((x[in_first], x[~in_first])):
        mean, std = end.means[k].flat[0], end.stds[k].flat[0]
        # Monte Carlo; an allowance of 2/steps for the first-order bias (an estimate, not a bound); Langevin.
        assert abs(points.mean() - mean) < (5 / np.sqrt(points.size) + 2 / MIXTURE_STEPS + bias) * std
        assert abs(points.var() / std**2 - 1) < 5 * np.sqrt(2 / points.size) + 2 * (2 / MIXTURE_STEPS + bias)


# --- the loop ------------------------------------------------------------------------------------------------------


def _counting(denoiser, counter):
    """The denoiser, that adds the calls really made to `counter`: on the host, when they happen."""

    def function(x_t, t, condition):
        jax.debug.callback(lambda _: counter.append(1), x_t)
        return denoiser.function(x_t, t, condition)

    return dataclasses.replace(denoiser, function=function)


@solver_case
def test_evaluations_are_those_really_made(name, options):
    """A batch of one, every call of the denoiser counted on the host."""
    sde, counter = MILD["vp"], []
    solver = _solver(name, options, _counting(BIMODAL.denoiser(sde), counter))
    grid = GRIDS["uniform"](sde, 3)
    samples = jax.jit(lambda x, keys: run(solver, x, grid, keys, last="denoise"))(jnp.full((1, 1), 0.7), _keys(1))
    jax.block_until_ready(samples)
    jax.effects_barrier()
    assert int(samples.evaluations[0]) == len(counter)
    if solver.evaluations_per_step is not None:
        assert len(counter) == 3 * solver.evaluations_per_step + 1


@functools.cache
def _loop(name, options, steps=20, last="none"):
    """A jitted run on the bimodal target in three dimensions."""
    sde = MILD["vp"]
    target = oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.15, 0.25], (3,))
    solver = SOLVERS[name](denoiser=target.denoiser(sde), **dict(options))
    return jax.jit(lambda x, keys: run(solver, x, GRIDS["uniform"](sde, steps), keys, last=last))


@solver_case
def test_a_sample_depends_on_its_key_alone(name, options):
    """Alone or among eight: the same sample and the same evaluations (float32, fused differently).

    In float64 where steps are adaptive: rounding may move the error of a step across the tolerance, and their number.
    """
    loop = _loop(name, tuple(options.items()))
    keys = _keys(8)
    with jax.enable_x64(name in ADAPTIVE):
        x_T = rng.normal(keys, (3,)).astype(jnp.float64 if name in ADAPTIVE else jnp.float32)
        together = loop(x_T, keys)
        for i in (0, 5):
            alone = loop(x_T[i : i + 1], keys[i : i + 1])
            np.testing.assert_allclose(alone.x[0], together.x[i], rtol=1e-5, atol=1e-5)
            assert int(alone.evaluations[0]) == int(together.evaluations[i])


@solver_case
def test_stochastic_solvers_use_the_key_and_others_do_not(name, options):
    loop = _loop(name, tuple(options.items()))
    x_T = rng.normal(_keys(8), (3,))
    same = np.array_equal(loop(x_T, _keys(8)).x, loop(x_T, _keys(8, "other")).x)
    assert same == (_is_deterministic(name, options))


@process
def test_one_step_of_any_grid_is_the_whole_way(sde):
    for grid in GRIDS.values():
        np.testing.assert_array_equal(grid(sde, 1), [sde.T, sde.t_min])


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_works_on_every_process(name):
    def runs(x, keys):
        for process in PROCESSES.values():
            sde = process()
            solver = SOLVERS[name](denoiser=SCALAR.denoiser(sde))
            yield run(solver, sde.sigma(jnp.full(2, sde.T))[:, None] * x, GRIDS["uniform"](sde, 1), keys)

    for samples in jax.jit(lambda x, keys: list(runs(x, keys)))(rng.normal(_keys(2), (1,)), _keys(2)):
        assert samples.x.shape == (2, 1)
        assert np.all(np.isfinite(samples.x))
        assert samples.evaluations.shape == samples.failed.shape == (2,)
        assert not np.any(samples.failed)


# f and g are infinite where a process ends in pure noise: these solvers say so, all others run.
NOT_FROM_PURE_NOISE = {"euler_maruyama"}
FROM_NOISE = {"rectified_flow": RectifiedFlow(T=1.0), "vp": Options(zero_terminal_snr=True).apply(MILD["vp"])}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("sde", FROM_NOISE.values(), ids=FROM_NOISE)
def test_solvers_run_from_pure_noise_or_say_that_they_cannot(name, sde):
    """The first step leaves T, where x_T says nothing of the data, and D is their mean: finite, and no worse for it.

    A network's v is converted, since from ε̂ there is no way to D at T.
    """
    target = oracles.gaussian(MEAN, STD, (16,))
    exact = target.denoiser(sde)
    network = lambda x, t, condition: exact.predict("v", x, t)
    denoiser = Denoiser(sde=sde, function=network, prediction="v")
    solver = SOLVERS[name](denoiser=denoiser)
    if name in NOT_FROM_PURE_NOISE:
        with pytest.raises(UserError, match="infinite where the process ends in pure noise"):
            solver.check_process(sde)
        return
    solver.check_process(sde)
    samples = jax.jit(lambda x, keys: run(solver, x, GRIDS["uniform"](sde, 50), keys))(
        rng.normal(_keys(64), (16,)), _keys(64)
    )
    x = np.asarray(samples.x, np.float64)
    assert not np.any(samples.failed)
    # 5 standard errors of 1024 values are 0.16; twice that leaves room for 50 steps (an estimate, not a bound).
    assert abs(x.mean() - MEAN) < 0.3 * STD
    assert abs(x.std() / STD - 1) < 0.3


def test_the_log_snr_grid_cannot_begin_in_pure_noise():
    with pytest.raises(UserError, match="finite log_snr at T"):
        GRIDS["log_snr"](FROM_NOISE["rectified_flow"], 10)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_loop_is_one_scan_whatever_the_number_of_steps(name):
    sde = PROCESSES["vp"]()
    solver = SOLVERS[name](denoiser=oracles.gaussian(MEAN, STD, (3,)).denoiser(sde))
    programs = [
        jax.make_jaxpr(lambda x, keys, steps=steps: run(solver, x, GRIDS["uniform"](sde, steps), keys))(
            jnp.zeros((2, 3)), _keys(2)
        ).jaxpr
        for steps in (5, 50)
    ]
    assert [_scans_at_the_top(program) for program in programs] == [1, 1]
    assert _equations(programs[0]) == _equations(programs[1])


def _inner(equation):
    return jax.extend.core.jaxprs_in_params(equation.params)


def _scans_at_the_top(jaxpr):
    """Scans, not counting what stands inside of them."""
    return sum(1 if e.primitive.name == "scan" else sum(map(_scans_at_the_top, _inner(e))) for e in jaxpr.eqns)


def _equations(jaxpr):
    return sum(1 + sum(map(_equations, _inner(equation))) for equation in jaxpr.eqns)


@solver_case
def test_last_step_rules(name, options):
    """mean: the state without the last noise, which leaves the other draws alone; denoise: D at t_min of the state."""
    sde = MILD["vp"]
    solver = _solver(name, options, SCALAR.denoiser(sde))
    grid, keys = GRIDS["uniform"](sde, 1), _keys(2)
    x_T = rng.normal(keys, (1,))

    def evaluate(x_T, keys):
        rules = [run(solver, x_T, grid, keys, last=last) for last in LAST_STEPS]
        with _noise([jnp.zeros((2, 1), jnp.float32)] * DRAWS):
            return rules, run(solver, x_T, grid, keys) if not _is_langevin(solver) else None

    (none, mean, denoise), without_noise = jax.jit(evaluate)(x_T, keys)
    exact = SCALAR.posterior_mean(sde, none.x, jnp.full(2, sde.t_min, jnp.float32))
    # float32, of values of size 1.
    np.testing.assert_allclose(denoise.x, exact, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(none.evaluations, mean.evaluations)
    np.testing.assert_array_equal(none.evaluations + 1, denoise.evaluations)
    assert np.array_equal(none.x, mean.x) == _is_deterministic(name, options)
    if without_noise is not None:  # one step whose every draw is zero is its own mean
        np.testing.assert_allclose(mean.x, without_noise.x, rtol=0, atol=1e-5)


@process
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_grids_run_from_the_end_to_t_min(sde, name):
    for steps in (1, 2, 1000):
        grid = GRIDS[name](sde, steps)
        assert grid.dtype == np.float64
        assert grid.shape == (steps + 1,)
        assert (grid[0], grid[-1]) == (sde.T, sde.t_min)
        assert np.all(np.diff(np.asarray(grid, np.float32)) < 0)


@process
def test_the_log_snr_grid_is_uniform_in_log_snr(sde):
    with jax.enable_x64(True):
        steps = np.diff(np.asarray(sde.log_snr(jnp.asarray(GRIDS["log_snr"](sde, 50)))))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)  # the ends are t_min and T themselves


@pytest.mark.parametrize("grid", [[1.0], [0.1, 1.0], [1.0, 0.5, 0.5, 0.1], [1.0, 1.0 - 1e-12], [1.0, float("nan")]])
def test_bad_grids_are_refused(grid):
    solver = SOLVERS["ddim"](denoiser=BIMODAL.denoiser(PROCESSES["vp"]()))
    with pytest.raises(UserError, match="grid"):
        run(solver, jnp.zeros((1, 1)), np.array(grid), _keys(1))


def test_an_ode_that_gives_up_says_so():
    """A field that is not finite: failed, for that sample alone."""
    sde = PROCESSES["vp"]()
    function = lambda x, t, condition: jnp.where(x > 0, jnp.nan, x)
    solver = SOLVERS["ode"](denoiser=Denoiser(sde=sde, function=function))
    samples = run(solver, jnp.asarray([[1.0], [-1.0]]), GRIDS["uniform"](sde, 2), _keys(2))
    assert bool(samples.failed[0])
    assert np.isnan(samples.x[0, 0])


# --- identities ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _jitted_step(solver, x, t, s, noise):
    with _noise(noise):
        carry = solver.step(solver.init(x, np.array([1.0, 0.0])), t, s, _keys(x.shape[0]))
    return carry.x, carry.mean


def _one_step(solver, x, t, s, noise):
    """x_s and its mean from one step in float64, with the given draws."""
    with jax.enable_x64(True):
        t, s = (jnp.full(len(x), time, jnp.float64) for time in (t, s))
        return tuple(np.asarray(value) for value in _jitted_step(solver, jnp.asarray(x), t, s, jnp.asarray(noise)))


def _levels(sde, t):
    with jax.enable_x64(True):
        return float(sde.alpha(jnp.asarray(t))), float(sde.sigma(jnp.asarray(t)))


PAIRS = [(1.0, 0.9), (0.6, 0.2), (0.3, 0.01)]  # in units of T
POINTS = np.linspace(-1.5, 1.5, 5)[:, None]


_posterior_mean = jax.jit(BIMODAL.posterior_mean, static_argnums=0)


def _denoised(sde, x, t):
    with jax.enable_x64(True):
        return np.asarray(_posterior_mean(sde, jnp.asarray(x), jnp.full(len(x), t)))


@functools.cache
def _bimodal(name, sde, **options):
    """One solver object a process, so that its compiled step is shared."""
    return SOLVERS[name](denoiser=BIMODAL.denoiser(sde), **options)


@process
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_ddim_0_is_euler_in_sigma_bar(sde, t, s):
    """With y = x/α and σ̄ as time, the probability-flow ODE is dy/dσ̄ = ε̂."""
    t, s = t * sde.T, s * sde.T
    x_s, _ = _one_step(_bimodal("ddim", sde), POINTS, t, s, np.zeros((1, 5, 1)))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(sde, t), _levels(sde, s)
    epsilon = (POINTS - alpha_t * _denoised(sde, POINTS, t)) / sigma_t
    euler = POINTS / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * epsilon
    # x/α and σ̄ ε̂ are up to 1/α ≤ 1000 larger than their difference.
    np.testing.assert_allclose(x_s, alpha_s * euler, rtol=1e-10, atol=1e-12)


@process
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_ddim_1_is_the_exact_posterior(sde, t, s):
    """q(x_s | x_t, x_0 = D) by Bayes' rule: precisions add, of N(α_s D, σ_s²) and of the transition a x_s + G ε."""
    t, s = t * sde.T, s * sde.T
    x_s, mean = _one_step(_bimodal("ddim", sde, eta=1.0), POINTS, t, s, np.ones((1, 5, 1)))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(sde, t), _levels(sde, s)
    a = alpha_t / alpha_s
    transition_variance = sigma_t**2 - (a * sigma_s) ** 2
    variance = 1 / (1 / sigma_s**2 + a**2 / transition_variance)
    posterior = variance * (alpha_s * _denoised(sde, POINTS, t) / sigma_s**2 + a * POINTS / transition_variance)
    np.testing.assert_allclose(mean, posterior, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(x_s - mean, np.sqrt(variance), rtol=1e-9)


@process
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginal_given_x_0(sde, eta):
    """If D is the true x_0, then x_s ~ N(α_s x_0, σ_s²) for every η: its variance is what it should be exactly."""
    t, s, x_0 = 0.6, 0.2, 0.4
    solver = SOLVERS["ddim"](denoiser=Denoiser(sde=sde, function=lambda x, t, c: 0 * x + x_0), eta=eta)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(sde, t), _levels(sde, s)
    ends = np.array([[alpha_t * x_0], [alpha_t * x_0 + sigma_t]])  # ε = 0 and ε = 1
    x_s, mean = _one_step(solver, ends, t, s, np.ones((1, 2, 1)))
    variance = (mean[1, 0] - mean[0, 0]) ** 2 + (x_s - mean)[0, 0] ** 2
    assert variance == pytest.approx(sigma_s**2, rel=1e-10)
    assert mean[0, 0] == pytest.approx(alpha_s * x_0, rel=1e-10)


@pytest.mark.parametrize("sde", [MILD["vp"], MILD["ve"]], ids=["vp", "ve"])
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_reverse_diffusion_is_the_papers_discretisation(sde, t, s):
    """Eq. 46, x_i = (2 − √(1−β)) x + β score + √β z with β = 1 − α_t²/α_s², for VP; eq. 47 for VE (σ_t² − σ_s²)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(sde, t), _levels(sde, s)
    score = (alpha_t * _denoised(sde, POINTS, t) - POINTS) / sigma_t**2
    if isinstance(sde, VP):
        beta = 1 - (alpha_t / alpha_s) ** 2
        expected, noise = (2 - np.sqrt(1 - beta)) * POINTS + beta * score, np.sqrt(beta)
    else:
        square = sigma_t**2 - sigma_s**2
        expected, noise = POINTS + square * score, np.sqrt(square)
    x_s, mean = _one_step(_bimodal("reverse_diffusion", sde), POINTS, t, s, np.ones((1, 5, 1)))
    np.testing.assert_allclose(mean, expected, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(x_s - mean, noise, rtol=1e-9)


@pytest.mark.parametrize("predictor", sorted(PREDICTORS))
def test_pc_without_corrector_is_its_predictor(predictor):
    sde = PROCESSES["vp"]()
    denoiser = oracles.gaussian(MEAN, STD, (3,)).denoiser(sde)
    keys, grid = _keys(4), GRIDS["uniform"](sde, 10)
    x_T = rng.normal(keys, (3,))
    solvers = (
        SOLVERS["pc"](denoiser=denoiser, predictor=predictor, corrector="none"),
        PREDICTORS[predictor](denoiser=denoiser),
    )
    one, other = (jax.jit(lambda x, solver=solver: run(solver, x, grid, keys))(x_T) for solver in solvers)
    np.testing.assert_array_equal(one.x, other.x)
    assert solvers[0].evaluations_per_step == solvers[1].evaluations_per_step
    np.testing.assert_array_equal(one.evaluations, other.evaluations)


@process
def test_langevin_keeps_a_gaussian_up_to_its_step(sde):
    """On N(0, v) in many dimensions |score|² ≈ D/v, so that x → (1 − 2r²c) x + 2r√(c v) z, c = (α_t/α_s)².

    From variance v the move leads to v ((1 − 2r²c)² + 4r²c) = v (1 + 4 r⁴ c²).
    """
    t, s, r = 0.5, 0.45, 0.16
    target = oracles.gaussian(0.0, STD, (4096,))
    solver = SOLVERS["pc"](denoiser=target.denoiser(sde), snr=r)
    std = float(np.sqrt(target.marginal(sde, t).variance()[0]))
    keys = _keys(32)
    x = std * rng.normal(keys, (4096,))
    move = jax.jit(lambda x: solver._langevin(x, jnp.full(32, t), jnp.full(32, s), rng.child(keys, 1)))
    moved = np.asarray(move(x), np.float64)
    c = (_levels(sde, t)[0] / _levels(sde, s)[0]) ** 2
    # 131072 values: 5 standard errors are 2 %, less than the 4 r² c = 10 % of noise, were it without its drift.
    assert abs(moved.var() / std**2 / (1 + 4 * r**4 * c**2) - 1) < 5 * np.sqrt(2 / moved.size)
    gain = np.mean(moved * np.asarray(x)) / np.mean(np.asarray(x) ** 2)
    assert abs(gain - (1 - 2 * r**2 * c)) < 5 * 2 * r / np.sqrt(moved.size) + 2e-3  # |score|² is D/v to √(2/4096)/√32


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("euler_maruyama", {"eta": -0.1}, "eta"),
        ("ddim", {"eta": 1.1}, "eta"),
        ("ddim", {"eta": float("nan")}, "eta"),
        ("pc", {"predictor": "ancestrol"}, "did you mean 'ancestral'"),
        ("pc", {"corrector": "langevine"}, "did you mean 'langevin'"),
        ("pc", {"corrector_steps": 0}, "corrector_steps"),
        ("pc", {"snr": 0.0}, "snr"),
        ("ode", {"rtol": 0.0}, "rtol"),
    ],
)
def test_bad_options_are_refused(name, options, named):
    with pytest.raises(UserError, match=named):
        SOLVERS[name](denoiser=None, **options)


@pytest.mark.parametrize("settings", [{"grid": "unifrom"}, {"last": "men"}, {"steps": 0}])
def test_bad_sampler_settings_are_refused(settings):
    with pytest.raises(UserError, match=str(next(iter(settings.values())))):
        Sampler(solver=SOLVERS["ddim"], options={}, **settings)


def test_an_unknown_last_rule_is_refused():
    with pytest.raises(UserError, match="last-step rule"):
        _loop("ddim", (), last="men")(jnp.zeros((1, 3)), _keys(1))


@pytest.mark.parametrize("last", LAST_STEPS)
def test_samples_that_are_not_finite_are_said_to_have_failed(last):
    """A denoiser that is broken for the second of three samples."""
    function = lambda x_t, t, condition: jnp.where(x_t > 1e3, jnp.nan, 0.5 * x_t)
    solver = SOLVERS["ddim"](denoiser=Denoiser(sde=VP(), function=function))
    result = run(solver, jnp.asarray([[1.0], [2e3], [-1.0]]), GRIDS["uniform"](VP(), 3), _keys(3), last=last)
    np.testing.assert_array_equal(result.failed, [False, True, False])
