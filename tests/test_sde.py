"""One battery over every process: α and σ against their derivatives, their inverse, their law; the prior; precision.

What only one process claims is in `test_sde_processes.py`, what the options claim in `test_sde_options.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from score_sde import oracles, rng
from score_sde.errors import UserError
from score_sde.sde import CURVES, PROCESSES, integrate, reverse
from tests.tables import (
    COEFFICIENTS,
    ENDING,
    METHODS,
    PLAIN,
    SHIFTED,
    compute,
    even_in_log_snr,
    every_process,
    over,
    plain_process,
    prior_mismatch,
    table,
    times,
    transitions,
)

# --- α, σ and what follows from them -------------------------------------------------------------------------------


@every_process
def test_f_and_g_are_those_of_alpha_and_sigma(sde):
    """f = d log α/dt and g² = dσ²/dt − 2 f σ², by automatic differentiation of α and σ, as the SDE's definition."""
    t = times(sde)
    with jax.enable_x64(True):
        log_alpha, variance = (
            np.asarray(jax.jit(jax.vmap(jax.grad(function)))(jnp.asarray(t, jnp.float64)))
            for function in (lambda time: jnp.log(sde.alpha(time)), lambda time: sde.sigma(time) ** 2)
        )
    at = table(sde, "float64")
    f, g, sigma = at["drift_coefficient"], at["diffusion_coefficient"], at["sigma"]
    np.testing.assert_allclose(f, log_alpha, rtol=1e-12, atol=0)
    np.testing.assert_allclose(at["alpha_derivative"], f * at["alpha"], rtol=1e-12, atol=0)
    # dσ²/dt − 2 f σ² is a difference of terms of this size, which sets the absolute error.
    scale = np.abs(variance) + np.abs(2 * f * sigma**2)
    assert np.all(np.abs(g**2 - (variance - 2 * f * sigma**2)) <= 1e-13 * scale)
    assert np.all(np.abs(2 * at["sigma_derivative"] * sigma - variance) <= 1e-13 * scale)


@every_process
def test_the_integral_of_f_is_the_change_of_log_alpha(sde):
    """Without automatic differentiation: Gauss's rule between times at which log_snr changes by less than a tenth."""
    grid = even_in_log_snr(sde, 401)
    positions, weights = np.polynomial.legendre.leggauss(5)
    middle, half = (grid[1:] + grid[:-1]) / 2, np.diff(grid) / 2
    f = compute(sde, middle[:, None] + half[:, None] * positions, "float64", ["drift_coefficient"])["drift_coefficient"]
    integral = np.cumsum(half * (f @ weights))
    alpha = compute(sde, grid, "float64", ["alpha"])["alpha"]
    np.testing.assert_allclose(integral, np.log(alpha[1:] / alpha[0]), rtol=0, atol=1e-7)


@every_process
def test_log_snr_and_its_inverse(sde):
    at, t = table(sde, "float64"), times(sde).astype(np.float64)
    assert np.all(np.diff(at["log_snr"]) < 0)
    np.testing.assert_allclose(at["log_snr"], 2 * np.log(at["alpha"] / at["sigma"]), rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(at["sigma_bar"], np.exp(-at["log_snr"] / 2), rtol=1e-11)
    with jax.enable_x64(True):
        inverse = jax.jit(sde.time_of_log_snr)
        there = np.asarray(inverse(jnp.asarray(at["log_snr"])))
        levels = np.linspace(at["log_snr"][0], at["log_snr"][-1], 201)[1:-1]
        back = np.asarray(jax.jit(sde.log_snr)(inverse(jnp.asarray(levels))))
    np.testing.assert_allclose(there, t, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(back, levels, rtol=0, atol=1e-8)


@over(PLAIN | SHIFTED)
def test_the_process_stays_on_its_curve(sde):
    alpha, sigma = (table(sde, "float64")[name] for name in ("alpha", "sigma"))
    np.testing.assert_allclose(CURVES[sde.curve].norm(jnp.asarray(alpha), jnp.asarray(sigma)), 1, rtol=1e-6)


@every_process
def test_transitions_compose(sde):
    """s → t → u is s → u; and from the marginal at t_min one comes to the marginal at t. To T, with α_T = 0, too."""
    grid = np.linspace(sde.t_min, sde.T, 9)
    s, t, u = grid[:-2], grid[1:-1], grid[2:]
    pairs = [(s, t), (t, u), (s, u), (np.full(8, sde.t_min), grid[1:])]
    (a_st, std_st), (a_tu, std_tu), (a_su, std_su), (a_min, std_min) = (transitions(sde, *p, "float64") for p in pairs)
    levels = compute(sde, grid, "float64", ["alpha", "sigma"])
    alpha, sigma = levels["alpha"], levels["sigma"]
    np.testing.assert_allclose(a_su, a_st * a_tu, rtol=1e-11)
    np.testing.assert_allclose(std_su**2, a_tu**2 * std_st**2 + std_tu**2, rtol=1e-11)
    np.testing.assert_allclose(a_min * alpha[0], alpha[1:], rtol=1e-11)
    np.testing.assert_allclose((a_min * sigma[0]) ** 2 + std_min**2, sigma[1:] ** 2, rtol=1e-11)
    assert not np.any(transitions(sde, t, t, "float64")[1])  # from a time to itself nothing happens


@every_process
def test_simulated_paths_have_the_marginals(sde):
    """Euler–Maruyama on dx = f x dt + g dw from x_0 fixed, in steps even in log_snr.

    What the discretisation itself changes is no guess: its mean and variance follow a recursion. They must come to
    the marginal as the steps shrink, to first order, and the paths to theirs within 5 standard errors.
    """
    paths, steps, x_0 = 4000, 800, 1.5

    def euler(steps, x):
        """Errors of the recursion's mean (in σ) and variance, and the paths', at a quarter, half and the end."""
        grid = even_in_log_snr(sde, steps + 1)
        at = compute(sde, grid, "float64", COEFFICIENTS)
        f, g = at["drift_coefficient"], at["diffusion_coefficient"]
        generator = np.random.default_rng(1)
        mean, variance, kept = at["alpha"][0] * x_0, at["sigma"][0] ** 2, []
        x = mean + np.sqrt(variance) * x
        for i, h in enumerate(np.diff(grid)):
            mean, variance = (1 + f[i] * h) * mean, (1 + f[i] * h) ** 2 * variance + g[i] ** 2 * h
            x = x + f[i] * x * h + g[i] * np.sqrt(h) * generator.normal(size=x.shape)
            if i + 1 in (steps // 4, steps // 2, steps):
                sigma = at["sigma"][i + 1]
                errors = (mean - at["alpha"][i + 1] * x_0) / sigma, variance / sigma**2 - 1
                kept.append((*errors, x.mean() / sigma - mean / sigma, x.var() / variance - 1))
        return np.transpose(kept)

    mean, variance, sampled_mean, sampled_variance = euler(steps, np.random.default_rng(0).normal(size=paths))
    finer_mean, finer_variance, *_ = euler(2 * steps, np.zeros(1))
    for error, finer in ((mean, finer_mean), (variance, finer_variance)):
        # Halved, to what is left of the second order; some are exact.
        assert np.all(np.abs(finer) < 0.55 * np.abs(error) + 1e-9)
    assert max(np.abs(mean).max(), np.abs(variance).max()) < 0.05
    assert np.all(np.abs(sampled_mean) < 5 * 1.05 / np.sqrt(paths))
    assert np.all(np.abs(sampled_variance) < 5 * np.sqrt(2 / paths))


@every_process
def test_reverse_family_keeps_the_marginals(sde):
    """For a Gaussian, d/dt of mean and variance under `reverse` is that of the forward process, for any η.

    The forward-time law of dx = b(x) dt + η g dw̄ (run backward) has dm/dt = E b and dv/dt = 2 Cov(b, x) − η² g².
    """
    mean_0, variance_0, etas = 0.7, 0.3, (0.0, 0.5, 1.0, 2.0)
    with jax.enable_x64(True):
        t = jnp.asarray(even_in_log_snr(sde, 11))
        at = compute(sde, np.asarray(t), "float64")
        m, v = at["alpha"] * mean_0, at["alpha"] ** 2 * variance_0 + at["sigma"] ** 2
        mean_rate = at["alpha_derivative"] * mean_0
        variance_rate = 2 * (at["alpha"] * at["alpha_derivative"] * variance_0 + at["sigma"] * at["sigma_derivative"])

        @jax.jit
        def evaluate(x, score, t):
            return [
                reverse(sde, x, t, score, eta) + reverse(sde, x + 1, t, score - 1 / v[:, None], eta) for eta in etas
            ]

        moments = jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(-1), evaluate(jnp.asarray(m)[:, None], jnp.zeros((11, 1)), t)
        )
    g = at["diffusion_coefficient"]
    for eta, (at_mean, diffusion, above, _) in zip(etas, moments, strict=True):
        np.testing.assert_allclose(at_mean, mean_rate, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(diffusion, eta * g, rtol=1e-12)
        slope = above - at_mean
        change = 2 * slope * v - diffusion**2
        # A difference of terms of this size, each with float64 rounding.
        scale = np.abs(variance_rate) + (1 + eta**2) * g**2 + np.abs(2 * slope * v)
        assert np.all(np.abs(change - variance_rate) < 1e-11 * scale)


@plain_process
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


@plain_process
def test_times_of_any_shape(sde):
    t = jnp.linspace(sde.t_min, 0.9 * sde.T, 6)
    for name in (*METHODS, "time_of_log_snr"):
        shapes = [jax.eval_shape(getattr(sde, name), t.reshape(shape)).shape for shape in ((6,), (2, 3), (6, 1))]
        assert shapes == [(6,), (2, 3), (6, 1)]
        assert jax.eval_shape(getattr(sde, name), t[0]).shape == ()


# --- the prior -----------------------------------------------------------------------------------------------------


@every_process
def test_prior(sde):
    keys = rng.for_samples(rng.stream(0, "prior"), jnp.arange(2000))
    x = np.asarray(sde.prior_sample(keys, (2, 3)), np.float64)
    std = compute(sde, np.asarray([sde.T]), "float64", ["sigma"])["sigma"][0]
    assert x.shape == (2000, 2, 3)
    # 5 standard errors of mean and variance of 12000 draws.
    assert abs(x.mean()) < 5 * std / np.sqrt(x.size)
    assert abs(x.var() / std**2 - 1) < 5 * np.sqrt(2 / x.size)
    exact = scipy.stats.norm(0, std).logpdf(x).sum(axis=(1, 2))
    # float32: six terms of size up to 30.
    np.testing.assert_allclose(sde.prior_log_prob(jnp.asarray(x, jnp.float32)), exact, rtol=3e-6, atol=3e-5)


@every_process
def test_the_prior_is_the_marginal_at_the_end_but_for_the_stated_mismatch(sde):
    """By quadrature over p_T of log p_T − log prior."""
    mean, std = 0.5, 0.5
    end = oracles.gaussian(mean, std, (1,)).marginal(sde, sde.T)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    x = end.means[0, 0] + end.stds[0, 0] * nodes
    prior = scipy.stats.norm(0, compute(sde, np.asarray([sde.T]), "float64", ["sigma"])["sigma"][0])
    excess = scipy.stats.norm(end.means[0, 0], end.stds[0, 0]).logpdf(x) - prior.logpdf(x)
    stated = prior_mismatch(sde, mean, std)
    assert weights @ excess / weights.sum() == pytest.approx(stated, rel=1e-6, abs=1e-13)
    assert stated == 0 if sde.ends_in_noise else stated > 0


# --- precision -----------------------------------------------------------------------------------------------------


@every_process
def test_float32_is_as_good_as_float64(sde):
    """To 1e-5, which is 84 float32 roundings, wherever the process runs, the smallest time and the end included."""
    single, double = table(sde, "float32"), table(sde, "float64")
    for name in COEFFICIENTS:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-5, err_msg=name)
    # log_snr crosses zero: an absolute error there is a relative error of the signal-to-noise ratio itself.
    np.testing.assert_allclose(single["log_snr"], double["log_snr"], rtol=1e-5, atol=1e-5)
    grid = np.linspace(sde.t_min, sde.T, 1001).astype(np.float32)
    for one, other in zip(
        *(transitions(sde, grid[:-1], grid[1:], dtype) for dtype in ("float32", "float64")), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@every_process
def test_nothing_is_nan_in_float32(sde):
    for name, value in table(sde, "float32").items():
        assert np.all(np.isfinite(value)), name
    grid = np.linspace(sde.t_min, sde.T, 1001).astype(np.float32)
    scale, std = transitions(sde, grid[:-1], grid[1:], "float32")
    assert np.all(np.isfinite(scale))
    assert np.all(std > 0)
    sde.check_float32()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@over(ENDING)
def test_pure_noise_has_infinities_at_the_end_alone(sde, dtype):
    """At T α is 0 exactly; f, g and σ̄ are infinite, and the velocity's coefficients dα/dt and dσ/dt are finite."""
    assert sde.ends_in_noise
    at = {name: value[0] for name, value in compute(sde, np.asarray([sde.T]), dtype).items()}
    assert (at["alpha"], at["log_snr"], at["sigma_bar"]) == (0, -np.inf, np.inf)
    assert (at["drift_coefficient"], at["diffusion_coefficient"]) == (-np.inf, np.inf)
    assert at["alpha_derivative"] < 0
    assert np.isfinite(at["alpha_derivative"])
    assert np.isfinite(at["sigma_derivative"])
    before = compute(sde, np.asarray([sde.T * (1 - 1e-5)]), dtype, ["alpha_derivative", "sigma", "sigma_derivative"])
    for name, value in before.items():  # and continuous
        assert at[name] == pytest.approx(value[0], rel=1e-3, abs=1e-3)
    (scale,), (std,) = transitions(sde, np.asarray([0.5 * sde.T]), np.asarray([sde.T]), dtype)
    assert (scale, std) == (0, at["sigma"])


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "bad", [{"t_min": -0.1}, {"t_min": 1.0}, {"t_min": 2.0}, {"T": 0.0}, {"t_min": float("nan")}], ids=str
)
def test_bad_times_are_refused(name, bad):
    with pytest.raises(UserError, match="t_min"):
        PROCESSES[name](**{"T": 1.0, "t_min": 1e-5, **bad})


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("vp", {"beta_min": 0.0}, "beta_min"),
        ("vp", {"beta_min": 3.0, "beta_max": 2.0}, "beta_max"),
        ("vp", {"t_min": 0.0}, "t_min"),
        ("subvp", {"beta_min": -1.0}, "beta_min"),
        ("ve", {"sigma_min": 0.0}, "sigma_min"),
        ("ve", {"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_max"),
        ("smld", {"sigma_min": -1.0}, "sigma_min"),
        ("smld", {"scales": 1}, "scales"),
        ("smld", {"scales": 10**7}, "scales"),
        ("ddpm", {"steps": 1}, "steps"),
        ("ddpm", {"steps": 21}, "too few"),
        ("ddpm", {"beta_max": 0.05}, "beta_max"),
        ("ddpm", {"t_min": 1e-4}, "first step"),
        ("ddpm", {"T": 1.5}, "T must be at most 1"),
        ("cosine", {"offset": -0.1}, "offset"),
        ("cosine", {"offset": float("nan")}, "offset"),
        ("cosine", {"t_min": 0.0}, "t_min"),
        ("cosine", {"T": 1.1}, "at most 1"),
        ("edm", {"t_min": 0.0}, "t_min"),
        ("rectified_flow", {"t_min": 0.0}, "t_min"),
        ("rectified_flow", {"T": 1.01}, "at most 1"),
        ("trigonometric", {"t_min": 0.0}, "t_min"),
        ("trigonometric", {"T": 2.0}, "at most 1"),
        ("log_snr", {"curve": "vpp"}, "did you mean 'vp'"),
        ("log_snr", {"t_min": 0.0}, "not finite at t=0"),
        ("log_snr", {"T": 1.0}, "not finite at t=1"),
        ("vdm", {"log_snr_max": -6.0}, "log_snr_min"),
        ("vdm", {"log_snr_min": float("nan")}, "log_snr_min"),
        ("vdm", {"features": 0}, "features"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(name, parameters, named):
    with pytest.raises(UserError, match=named):
        PROCESSES[name](**parameters)


# --- integration of their ODEs -------------------------------------------------------------------------------------


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
