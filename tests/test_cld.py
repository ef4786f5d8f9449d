"""Critically damped Langevin diffusion, against integrals, a matrix exponential and simulated paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from score_sde.augmented import AugmentedDenoiser
from score_sde.errors import UserError
from score_sde.losses import Hybrid
from score_sde.samplers.cld import AugmentedEulerMaruyama
from score_sde.sde.cld import CLD
from tests import cld

# The paper's; no first velocity; one at its stationary law; and one whose constants are no powers of two.
PROCESSES = {
    "paper": CLD(),
    "gamma=0": CLD(gamma=0.0),
    "gamma=1": CLD(gamma=1.0),
    "odd": CLD(beta=3.7, mass=0.3, gamma=0.07, t_min=3e-4, T=1.3),
}
process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)


def _times(sde):
    """Times over [t_min, T] that float32 holds exactly, both ends included, half of them crowded towards t_min."""
    crowded = np.geomspace(sde.t_min, sde.T, 200)
    times = np.concatenate([np.linspace(sde.t_min, sde.T, 201), crowded]).astype(np.float32)
    return np.sort(np.clip(times, np.float32(sde.t_min), np.float32(sde.T)))


@functools.cache
def _table(sde, dtype):
    """Every coefficient at `_times(sde)`, computed in `dtype`, as NumPy float64."""

    def evaluate(t):
        table = {}
        for given in ("x_0", "z_0"):
            covariance = sde.covariance(t, given)
            table |= {f"{given} {n}": covariance[:, i, j] for n, i, j in (("xx", 0, 0), ("xv", 0, 1), ("vv", 1, 1))}
            table |= {f"{given} {n}": value for n, value in sde.cholesky(t, given)._asdict().items()}
        matrix = sde.transition_matrix(jnp.zeros_like(t), t)
        return table | {f"mean {i}{j}": matrix[:, i, j] for i in (0, 1) for j in (0, 1)}

    with jax.enable_x64(dtype == "float64"):
        values = jax.jit(evaluate)(jnp.asarray(_times(sde), dtype))
        assert all(value.dtype == dtype for value in values.values())
        return {name: np.asarray(value, np.float64) for name, value in values.items()}


@process
def test_closed_forms_are_the_integrals(sde):
    table, t = _table(sde, "float64"), _times(sde).astype(np.float64)
    for row in range(0, len(t), 25):
        flow = scipy.linalg.expm(cld.drift(sde) * t[row])
        noise, first = cld.noise(sde, t[row]), np.sqrt(sde.gamma * sde.mass) * flow[:, 1]
        determinants = cld.determinants(sde, t[row], first)
        # scipy's exponential is good to rounding of its largest entry, and Φ_vv crosses zero.
        got = np.array([[table[f"mean {i}{j}"][row] for j in (0, 1)] for i in (0, 1)])
        np.testing.assert_allclose(got, flow, rtol=1e-12, atol=1e-13 * np.abs(flow).max())
        covariances = (noise, noise + np.outer(first, first))
        for given, covariance, determinant in zip(("z_0", "x_0"), covariances, determinants, strict=True):
            xx, xv, vv, l_xx, l_xv, l_vv = (
                table[f"{given} {name}"][row] for name in ("xx", "xv", "vv", "l_xx", "l_xv", "l_vv")
            )
            # The integrand of Q_xv changes sign: the quadrature leaves rounding of √(Q_xx Q_vv), where Q_xv is 1e-4.
            allowed = 1e-14 * np.sqrt(xx * vv)
            np.testing.assert_allclose([xx, vv], np.diag(covariance), rtol=1e-12)
            np.testing.assert_allclose(xv, covariance[0, 1], rtol=1e-12, atol=allowed)
            np.testing.assert_allclose(l_xx, np.sqrt(xx), rtol=1e-12)
            np.testing.assert_allclose(l_xv, xv / np.sqrt(xx), rtol=1e-12)
            np.testing.assert_allclose(l_vv, np.sqrt(determinant / covariance[0, 0]), rtol=1e-10)


@process
def test_the_covariance_satisfies_its_equation(sde):
    """dΣ/dt = A Σ + Σ Aᵀ + G Gᵀ, and dΦ/dt = A Φ."""
    with jax.enable_x64(True):
        t = jnp.asarray(np.linspace(sde.t_min, sde.T, 17))
        drift, g = np.asarray(sde.drift_matrix(t)), np.asarray(sde.diffusion_coefficient(t))
        both = {
            given: [np.asarray(v) for v in jax.jvp(lambda s, g=given: sde.covariance(s, g), (t,), (jnp.ones_like(t),))]
            for given in ("x_0", "z_0")
        }
        flow, rate = map(np.asarray, jax.jvp(lambda s: sde.transition_matrix(0 * s, s), (t,), (jnp.ones_like(t),)))
    np.testing.assert_allclose(drift[0], cld.drift(sde), rtol=1e-15)
    np.testing.assert_allclose(rate, drift @ flow, rtol=1e-12, atol=1e-12)
    for sigma, derivative in both.values():
        noise = np.zeros_like(sigma)
        noise[:, 1, 1] = g**2
        expected = drift @ sigma + sigma @ np.swapaxes(drift, 1, 2) + noise
        np.testing.assert_allclose(derivative, expected, rtol=1e-10, atol=1e-12 * float(g[0] ** 2))


@process
def test_transitions_compose(sde):
    """s → t → u is s → u, and from the marginal at s one comes to that at t."""
    grid = np.linspace(sde.t_min, sde.T, 9)
    with jax.enable_x64(True):
        s, t, u = (jnp.asarray(v) for v in (grid[:-2], grid[1:-1], grid[2:]))
        f = {a + b: np.asarray(sde.transition_matrix(v, w)) for a, v, b, w in (("s", s, "t", t), ("t", t, "u", u))}
        q = {a + b: np.asarray(sde.covariance(w - v, "z_0")) for a, v, b, w in (("s", s, "t", t), ("t", t, "u", u))}
        direct, spread = np.asarray(sde.transition_matrix(s, u)), np.asarray(sde.covariance(u - s, "z_0"))
        sigma = {name: np.asarray(sde.covariance(v)) for name, v in (("s", s), ("t", t))}
        z = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)))
        mean, cholesky = sde.transition(z, s, t)
        factor = [np.asarray(v) for v in cholesky]
    transpose = lambda a: np.swapaxes(a, 1, 2)
    np.testing.assert_allclose(direct, f["tu"] @ f["st"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(spread, f["tu"] @ q["st"] @ transpose(f["tu"]) + q["tu"], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(sigma["t"], f["st"] @ sigma["s"] @ transpose(f["st"]) + q["st"], rtol=1e-11, atol=1e-14)
    # Positions first, velocities second.
    x, v = np.asarray(z)[:, :2], np.asarray(z)[:, 2:]
    expected = np.einsum("bij,jbd->ibd", f["st"], np.stack([x, v]))
    np.testing.assert_allclose(mean, np.concatenate([expected[0], expected[1]], axis=-1), rtol=1e-12, atol=1e-13)
    root = np.zeros((7, 2, 2))
    root[:, 0, 0], root[:, 1, 0], root[:, 1, 1] = factor
    np.testing.assert_allclose(root @ transpose(root), q["st"], rtol=1e-12)


@process
def test_float32_is_as_good_as_float64(sde):
    single, double = _table(sde, "float32"), _table(sde, "float64")
    for name, value in double.items():
        # Φ_vv = e^{−τ} (1 − τ) crosses zero: its error is one of e^{−τ} (1 + τ), which is Φ_xx.
        allowed = 1e-5 * (double["mean 00"] if name == "mean 11" else np.abs(value))
        assert np.all(np.isfinite(single[name])), name
        assert np.all(np.abs(single[name] - value) <= allowed), name


@process
def test_from_a_time_to_itself_nothing_happens(sde):
    z, t = jnp.ones((2, 3, 4)), jnp.asarray([sde.t_min, sde.T], jnp.float32)
    mean, cholesky = sde.transition(z, t, t)
    np.testing.assert_array_equal(mean, z)
    assert not np.any(cholesky.l_xx)
    assert not np.any(cholesky.l_xv)
    assert not np.any(cholesky.l_vv)


@process
def test_the_prior_is_stationary_and_nearly_reached(sde):
    stationary = np.diag([1, sde.mass])
    with jax.enable_x64(True):
        t = jnp.asarray([sde.t_min, 0.3, sde.T])
        flow, noise = np.asarray(sde.transition_matrix(0 * t, t)), np.asarray(sde.covariance(t, "z_0"))
        end = np.asarray(sde.covariance(t))[-1]
    kept = flow @ stationary @ np.swapaxes(flow, 1, 2) + noise
    np.testing.assert_allclose(kept, np.broadcast_to(stationary, (3, 2, 2)), rtol=1e-13, atol=1e-14)
    # What is left of x_0 = 1 at T, and KL(p_T(· | x_0) ‖ prior) in nats; τ = 8 with the paper's parameters.
    mean = flow[-1] @ [1, 0]
    tau = sde.beta * sde.T / np.sqrt(sde.mass)
    np.testing.assert_allclose(mean, np.exp(-tau) * np.array([1 + tau, -tau * np.sqrt(sde.mass)]), rtol=1e-12)
    ratio = np.linalg.solve(stationary, end)
    divergence = 0.5 * (np.trace(ratio) - 2 - np.linalg.slogdet(ratio)[1] + mean @ np.linalg.solve(stationary, mean))
    assert 0 < divergence < 2e-5


def test_prior():
    sde, keys = CLD(), cld.keys(4000, "prior")
    z = np.asarray(sde.prior_sample(keys, (2, 3)), np.float64)
    assert z.shape == (4000, 2, 6)
    assert sde.state_shape((4000, 2, 3)) == z.shape
    for part, std in ((sde.data_of(jnp.asarray(z)), 1.0), (sde.velocity_of(jnp.asarray(z)), 0.5)):
        x = np.asarray(part, np.float64)
        # 5 standard errors of mean and variance.
        assert abs(x.mean()) < 5 * std / np.sqrt(x.size)
        assert abs(x.var() / std**2 - 1) < 5 * np.sqrt(2 / x.size)
    exact = scipy.stats.norm(0, np.repeat([1, 0.5], 3)).logpdf(z).sum(axis=(1, 2))
    # float32: twelve terms of size up to 10.
    np.testing.assert_allclose(sde.prior_log_prob(jnp.asarray(z, jnp.float32)), exact, rtol=3e-6, atol=3e-5)


def test_simulated_paths_have_the_marginals():
    """Euler–Maruyama on the forward SDE as it stands in the paper, v_0 drawn, against `marginal`."""
    sde, paths, steps, x_0 = CLD(), 4000, 2000, 1.5
    h = sde.T / steps

    def body(state, number):
        x, v = state
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (paths,))
        x_next = x + h * 4 * 4 * v
        v_next = v - h * 4 * x - h * 1 * 4 * 4 * v + np.sqrt(2 * 1 * 4 * h).item() * noise
        return (x_next, v_next), (x_next, v_next)

    v_0 = 0.1 * jax.random.normal(jax.random.key(1), (paths,))  # √(γ M)
    start = (jnp.full(paths, x_0), v_0)
    _, (xs, vs) = jax.jit(lambda z: jax.lax.scan(body, z, jnp.arange(steps)))(start)
    indices = np.array([39, 199, 599, 1999])
    means, cholesky = jax.jit(sde.marginal)(jnp.full((4, 1), x_0), jnp.asarray((indices + 1) * h, jnp.float32))
    for index, mean, *factors in zip(indices, np.asarray(means), *cholesky, strict=True):
        l_xx, l_xv, l_vv = map(float, factors)
        sigma = np.array([[l_xx**2, l_xx * l_xv], [l_xx * l_xv, l_xv**2 + l_vv**2]])
        z = np.stack([xs[index], vs[index]]).astype(np.float64)
        scale = np.sqrt(np.diag(sigma))
        # 5 standard errors, and for the bias of 2000 Euler steps: h ‖A‖ t ~ 1 % of what the mean has moved through.
        bias = h * np.abs(cld.drift(sde)).max() * x_0
        assert np.all(np.abs(z.mean(axis=1) - mean) < 5 * scale / np.sqrt(paths) + bias)
        assert np.all(np.abs(np.cov(z) - sigma) < (5 * np.sqrt(2 / paths) + 0.02) * np.outer(scale, scale))


def test_float32_is_checked():
    CLD().check_float32()
    with pytest.raises(UserError, match="t_min"):
        CLD(t_min=1e-30, gamma=0.0).check_float32()


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": float("inf")}, "beta"),
        ({"mass": -1.0}, "mass"),
        ({"mass": float("nan")}, "mass"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": 1.5}, "gamma"),
        ({"t_min": 0.0}, "t_min"),
        ({"t_min": 1.0}, "t_min"),
        ({"T": float("nan")}, "t_min"),
    ],
)
def test_bad_parameters_are_refused(parameters, named):
    with pytest.raises(UserError, match=named):
        CLD(**parameters)


def test_bad_names_are_refused():
    sde = CLD()
    for make, named in (
        (lambda: sde.covariance(jnp.ones(1), "v_0"), "start"),
        (lambda: AugmentedDenoiser(sde=sde, function=lambda *_: 0, prediction="noise"), "prediction"),
        (lambda: Hybrid(given="v_0"), "start"),
        (lambda: AugmentedEulerMaruyama(eta=-1.0), "eta"),
    ):
        with pytest.raises(UserError, match=named):
            make()
