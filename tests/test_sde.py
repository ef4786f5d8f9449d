"""One battery over every process: α and σ against their derivatives, their inverse, their law and their paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from score_sde import rng
from score_sde.errors import UserError
from score_sde.sde import PROCESSES, SubVP, integrate, reverse

NAMES = sorted(PROCESSES)
process = pytest.mark.parametrize("sde", [PROCESSES[name]() for name in NAMES], ids=NAMES)

COEFFICIENTS = ("alpha", "sigma", "drift_coefficient", "diffusion_coefficient")
METHODS = (*COEFFICIENTS, "log_snr", "sigma_bar", "alpha_derivative", "sigma_derivative")
COUNT = 401


def _times(sde):
    """Times over [t_min, T] that float32 holds exactly, both ends included, half of them crowded towards t_min."""
    linear = np.linspace(sde.t_min, sde.T, COUNT // 2)
    crowded = np.geomspace(max(sde.t_min, 1e-6), sde.T, COUNT - COUNT // 2)
    return np.sort(np.concatenate([linear, crowded])).astype(np.float32)


@functools.cache
def _table(sde, dtype):
    """Every coefficient at `_times(sde)`, computed in `dtype` ("float32" or "float64"), as NumPy float64."""

    def evaluate(t):
        table = {name: getattr(sde, name)(t) for name in METHODS}
        table["there_and_back"] = sde.time_of_log_snr(sde.log_snr(t))
        table["log_alpha_gradient"] = jax.vmap(jax.grad(lambda time: jnp.log(sde.alpha(time))))(t)
        table["variance_gradient"] = jax.vmap(jax.grad(lambda time: sde.sigma(time) ** 2))(t)
        return table

    with jax.enable_x64(dtype == "float64"):
        values = jax.jit(evaluate)(jnp.asarray(_times(sde), dtype))
        assert all(value.dtype == dtype for value in values.values())
        return {name: np.asarray(value, np.float64) for name, value in values.items()}


# f and g² as the paper states them (Song et al. 2021, eq. 30-31 for VE; appendix B for VP and sub-VP).


def _beta(sde, t):
    return sde.beta_min + t * (sde.beta_max - sde.beta_min)


def _integrated_beta(sde, t):
    return sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2


PAPER = {
    "vp": lambda sde, t: (-_beta(sde, t) / 2, _beta(sde, t)),
    "subvp": lambda sde, t: (-_beta(sde, t) / 2, -_beta(sde, t) * np.expm1(-2 * _integrated_beta(sde, t))),
    "ve": lambda sde, t: (
        0 * t,
        2 * (sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t) ** 2 * np.log(sde.sigma_max / sde.sigma_min),
    ),
}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_coefficients_are_the_papers(name):
    sde = PROCESSES[name]()
    drift, diffusion_squared = PAPER[name](sde, _times(sde).astype(np.float64))
    table = _table(sde, "float64")
    # float64 rounding: 1e-12 leaves a factor 1e4 for the autodiff's longer chain of operations.
    np.testing.assert_allclose(table["drift_coefficient"], drift, rtol=1e-12, atol=0)
    np.testing.assert_allclose(table["diffusion_coefficient"] ** 2, diffusion_squared, rtol=1e-12, atol=0)


@process
def test_f_is_the_derivative_of_log_alpha(sde):
    table = _table(sde, "float64")
    f, alpha = table["drift_coefficient"], table["alpha"]
    np.testing.assert_allclose(f, table["log_alpha_gradient"], rtol=1e-12, atol=0)
    np.testing.assert_allclose(table["alpha_derivative"], f * alpha, rtol=1e-12, atol=0)
    # And without autodiff: the trapezoidal integral of f is the change of log α, to Σ h³ f''/12 and rounding.
    t = _times(sde).astype(np.float64)
    integral = np.concatenate([[0], np.cumsum(np.diff(t) * (f[1:] + f[:-1]) / 2)])
    np.testing.assert_allclose(integral, np.log(alpha) - np.log(alpha[0]), rtol=0, atol=1e-5)


@process
def test_g_squared_keeps_the_variance(sde):
    table = _table(sde, "float64")
    f, g, sigma, derivative = (
        table[name] for name in ("drift_coefficient", "diffusion_coefficient", "sigma", "variance_gradient")
    )
    # dσ²/dt − 2 f σ² is a difference of terms of this size, which sets the absolute error.
    scale = np.abs(derivative) + np.abs(2 * f * sigma**2)
    assert np.all(np.abs(g**2 - (derivative - 2 * f * sigma**2)) <= 1e-13 * scale)
    np.testing.assert_allclose(2 * table["sigma_derivative"] * sigma, derivative, rtol=1e-12, atol=0)


@process
def test_time_of_log_snr_inverts_log_snr(sde):
    table = _table(sde, "float64")
    t = _times(sde).astype(np.float64)
    np.testing.assert_allclose(table["there_and_back"], t, rtol=1e-9, atol=1e-14)
    assert np.all(np.diff(table["log_snr"])[np.diff(t) > 0] < 0)
    snr = 2 * np.log(table["alpha"] / table["sigma"])
    np.testing.assert_allclose(table["log_snr"], snr, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(table["sigma_bar"], np.exp(-snr / 2), rtol=1e-12)


@process
def test_transitions_compose(sde):
    """s → t → u is s → u; and from the marginal at t_min one comes to the marginal at t."""
    grid = np.linspace(sde.t_min, sde.T, 9)
    s, t, u = grid[:-2], grid[1:-1], grid[2:]
    with jax.enable_x64(True):
        transition = jax.jit(sde.transition_coefficients)
        pairs = [(s, t), (t, u), (s, u), (np.full(7, sde.t_min), t)]
        values = [[np.asarray(v) for v in transition(jnp.asarray(a), jnp.asarray(b))] for a, b in pairs]
        levels = {time: [np.asarray(c(jnp.asarray([time]))) for c in (sde.alpha, sde.sigma)] for time in grid}
    (a_st, std_st), (a_tu, std_tu), (a_su, std_su), (a_min, std_min) = values
    np.testing.assert_allclose(a_su, a_st * a_tu, rtol=1e-12)
    np.testing.assert_allclose(std_su**2, a_tu**2 * std_st**2 + std_tu**2, rtol=1e-12)
    alpha, sigma = (np.concatenate([levels[time][i] for time in t]) for i in (0, 1))
    alpha_min, sigma_min = (levels[grid[0]][i] for i in (0, 1))
    np.testing.assert_allclose(a_min * alpha_min, alpha, rtol=1e-12)
    np.testing.assert_allclose((a_min * sigma_min) ** 2 + std_min**2, sigma**2, rtol=1e-12)


@process
def test_marginal_and_transition_broadcast_over_the_sample(sde):
    x = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    s, t = jnp.full(3, sde.t_min), jnp.linspace(0.2, 0.9, 3) * sde.T
    mean, std = sde.marginal(jnp.asarray(x), t)
    assert std.shape == (3, 1, 1)
    np.testing.assert_allclose(mean, np.asarray(sde.alpha(t))[:, None, None] * x, rtol=1e-6)
    scale, _ = sde.transition_coefficients(s, t)
    mean, std = sde.transition(jnp.asarray(x), s, t)
    assert std.shape == (3, 1, 1)
    np.testing.assert_allclose(mean, np.asarray(scale)[:, None, None] * x, rtol=1e-6)
    assert not np.any(sde.transition_coefficients(t, t)[1])  # from a time to itself nothing happens


@process
def test_simulated_paths_have_the_marginals(sde):
    """Euler-Maruyama on dx = f x dt + g dw, from x_0 fixed; steps geometric near t_min, where σ changes fastest."""
    paths, steps, x_0 = 4000, 2000, 1.5
    grid = np.linspace(0, 1, steps + 1) ** 2 * (sde.T - sde.t_min) + sde.t_min
    key = jax.random.key(0)

    def body(x, step):
        t, s, number = step
        time = jnp.full(paths, t)
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        x = x + (s - t) * sde.drift(x, time) + jnp.sqrt(s - t) * sde.diffusion(x, time) * noise
        return x, x

    mean, std = sde.marginal(jnp.full((paths, 1), x_0), jnp.full(paths, sde.t_min))
    start = mean + std * jax.random.normal(jax.random.key(1), (paths, 1))
    times = jnp.asarray(grid, jnp.float32)
    _, states = jax.jit(lambda x: jax.lax.scan(body, x, (times[:-1], times[1:], jnp.arange(steps))))(start)
    for index in (steps // 4, steps // 2, steps - 1):
        x = np.asarray(states[index], np.float64)
        alpha, sigma = float(sde.alpha(times[index + 1])), float(sde.sigma(times[index + 1]))
        # 5 standard errors; 1 % is allowed for the bias of 2000 Euler steps (an estimate, not a bound).
        assert abs(x.mean() - alpha * x_0) < 5 * sigma / np.sqrt(paths)
        assert abs(x.var() / sigma**2 - 1) < 5 * np.sqrt(2 / paths) + 0.01


@process
def test_reverse_family_keeps_the_marginals(sde):
    """For a Gaussian, d/dt of mean and variance under `reverse` is that of the forward process, for any η.

    The forward-time law of dx = b(x) dt + η g dw̄ (run backward) has dm/dt = E b and dv/dt = 2 Cov(b, x) − η² g².
    """
    mean_0, variance_0, etas = 0.7, 0.3, (0.0, 0.5, 1.0, 2.0)

    def evaluate(t):
        m = lambda time: sde.alpha(time) * mean_0
        v = lambda time: sde.alpha(time) ** 2 * variance_0 + sde.sigma(time) ** 2
        score = lambda x: -(x - m(t)[:, None]) / v(t)[:, None]
        x = m(t)[:, None]
        moments = [reverse(sde, x, t, score(x), eta) + reverse(sde, x + 1, t, score(x + 1), eta) for eta in etas]
        return moments, v(t), jax.vmap(jax.grad(m))(t), jax.vmap(jax.grad(v))(t), sde.diffusion_coefficient(t)

    with jax.enable_x64(True):
        moments, variance, mean_rate, variance_rate, g = jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(-1), jax.jit(evaluate)(jnp.linspace(sde.t_min, sde.T, 11))
        )
    for eta, (at_mean, diffusion, above, _) in zip(etas, moments, strict=True):
        np.testing.assert_allclose(at_mean, mean_rate, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(diffusion, eta * g, rtol=1e-13)
        slope = above - at_mean
        change = 2 * slope * variance - diffusion**2
        # A difference of terms of this size, each with float64 rounding.
        scale = np.abs(variance_rate) + (1 + eta**2) * g**2 + np.abs(2 * slope * variance)
        assert np.all(np.abs(change - variance_rate) < 1e-12 * scale)


@process
def test_prior(sde):
    keys = rng.for_samples(rng.stream(0, "prior"), jnp.arange(2000))
    x = np.asarray(sde.prior_sample(keys, (2, 3)), np.float64)
    std = _table(sde, "float64")["sigma"][-1]
    assert x.shape == (2000, 2, 3)
    # 5 standard errors of mean and variance of 12000 draws.
    assert abs(x.mean()) < 5 * std / np.sqrt(x.size)
    assert abs(x.var() / std**2 - 1) < 5 * np.sqrt(2 / x.size)
    exact = scipy.stats.norm(0, std).logpdf(x).sum(axis=(1, 2))
    # float32: six terms of size up to 30.
    np.testing.assert_allclose(sde.prior_log_prob(jnp.asarray(x, jnp.float32)), exact, rtol=3e-6, atol=3e-5)


@process
def test_float32_is_as_good_as_float64(sde):
    single, double = _table(sde, "float32"), _table(sde, "float64")
    for name in COEFFICIENTS:
        # 1e-5 is 84 float32 roundings; the exponent of α at T is about −5, which multiplies its rounding by 5.
        np.testing.assert_allclose(single[name], double[name], rtol=1e-5, atol=0, err_msg=name)
    # log_snr crosses zero: an absolute error there is a relative error of the signal-to-noise ratio itself.
    np.testing.assert_allclose(single["log_snr"], double["log_snr"], rtol=1e-5, atol=1e-5)


@process
def test_nothing_is_nan_in_float32(sde):
    for name, value in _table(sde, "float32").items():
        assert np.all(np.isfinite(value)), name
    grid = np.linspace(sde.t_min, sde.T, 1001).astype(np.float32)
    scale, std = jax.jit(sde.transition_coefficients)(jnp.asarray(grid[:-1]), jnp.asarray(grid[1:]))
    assert np.all(np.isfinite(scale))
    assert np.all(np.asarray(std) > 0)


@process
def test_times_of_any_shape(sde):
    t = jnp.linspace(sde.t_min, sde.T, 6)
    for name in (*COEFFICIENTS, "log_snr"):
        shapes = [jax.eval_shape(getattr(sde, name), t.reshape(shape)).shape for shape in ((6,), (2, 3), (6, 1))]
        assert shapes == [(6,), (2, 3), (6, 1)]
        assert jax.eval_shape(getattr(sde, name), t[0]).shape == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "times", [{"t_min": -0.1}, {"t_min": 1.0}, {"t_min": 2.0}, {"T": 0.0}, {"t_min": float("nan")}]
)
def test_bad_times_are_refused(name, times):
    with pytest.raises(UserError, match="t_min"):
        PROCESSES[name](**{"T": 1.0, "t_min": 1e-5, **times})


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("vp", {"beta_min": 0.0}, "beta_min"),
        ("vp", {"beta_min": 3.0, "beta_max": 2.0}, "beta_max"),
        ("subvp", {"beta_min": -1.0}, "beta_min"),
        ("ve", {"sigma_min": 0.0}, "sigma_min"),
        ("ve", {"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_max"),
    ],
)
def test_bad_parameters_are_refused(name, parameters, named):
    with pytest.raises(UserError, match=named):
        PROCESSES[name](**parameters)


def test_constant_beta_is_allowed():
    """β_min = β_max: B = β t, whose inverse has no square root of a difference."""
    sde = SubVP(beta_min=2.0, beta_max=2.0)
    t = jnp.linspace(0.01, 1, 5)
    np.testing.assert_allclose(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-5)


def test_integrate_reaches_the_exact_solution_of_each_sample():
    """dy/dt = −k y has y = e^{−k t}; the error stays near the tolerance, for slow and fast samples of one batch."""
    with jax.enable_x64(True):
        rate = jnp.asarray([0.1, 1.0, 30.0])
        start = jnp.ones((3, 2))
        solve = lambda tolerance: integrate(
            lambda t, y, k: -k * y, start, rate, 0.0, 1.0, rtol=tolerance, atol=tolerance
        )
        solution = solve(1e-9)
        np.testing.assert_allclose(solution.y, jnp.exp(-rate)[:, None] * start, rtol=0, atol=1e-7)
        assert not np.any(solution.failed)
        assert np.all(np.diff(np.asarray(solution.evaluations)) > 0)  # each sample has steps of its own
        back = integrate(lambda t, y, k: -k * y, solution.y[:2], rate[:2], 1.0, 0.0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(back.y, start[:2], rtol=0, atol=1e-7)


def test_integrate_says_which_sample_failed():
    """dy/dt = y² from y = 2 blows up at t = ½; from y = ¼ it is 1/(4 − t)."""
    start = jnp.asarray([[2.0], [0.25]])
    solution = integrate(lambda t, y, _: y**2, start, None, 0.0, 1.0, rtol=1e-5, atol=1e-5, max_steps=64)
    np.testing.assert_array_equal(solution.failed, [True, False])
    assert np.isnan(solution.y[0, 0])
    np.testing.assert_allclose(solution.y[1, 0], 1 / 3, rtol=1e-4)
