"""Critically damped Langevin diffusion, against integrals, a matrix exponential and Gaussian data, whose law is known.

A Gaussian stays one: z_t ~ N(Φ (μ, 0), Φ diag(s², γ M) Φᵀ + Q). Its score, posterior mean, density and probability flow
are closed forms, built here in float64 from `scipy.linalg.expm` and Gauss quadrature, not from the code under test.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from score_sde import rng
from score_sde.augmented import PREDICTIONS, AugmentedDenoiser, network_denoiser
from score_sde.augmented_likelihood import log_likelihood_bound
from score_sde.denoiser import Model, Parameterisation
from score_sde.errors import UserError
from score_sde.losses import OBJECTIVES, TIMES, WEIGHTINGS, Hybrid, Times
from score_sde.samplers import Sampler
from score_sde.samplers.base import run
from score_sde.samplers.cld import SSCS, AugmentedEulerMaruyama, SSCSMidpoint, SymmetricSplitting
from score_sde.samplers.probability_flow import ProbabilityFlowODE
from score_sde.sde import VP, integrate
from score_sde.sde.cld import CLD
from tests import program

# The paper's; no first velocity; one at its stationary law; and one whose constants are no powers of two.
PROCESSES = {
    "paper": CLD(),
    "gamma=0": CLD(gamma=0.0),
    "gamma=1": CLD(gamma=1.0),
    "odd": CLD(beta=3.7, mass=0.3, gamma=0.07, t_min=3e-4, T=1.3),
}
process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
# Short and wide, so that few steps are in the asymptotic regime.
MILD = CLD(beta=2.0, mass=0.5, gamma=0.6, t_min=0.02)
MEAN, STD = 0.5, 0.4


# --- what is known of the process, in NumPy -------------------------------------------------------------------------


def _drift(sde):
    return np.array([[0, sde.beta / sde.mass], [-sde.beta, -2 * np.sqrt(sde.mass) * sde.beta / sde.mass]])


def _paths(sde, duration):
    """Gauss quadrature over r in [0, duration]: its weights, and Φ(r) G, `(nodes, 2)`."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    g = np.sqrt(4 * np.sqrt(sde.mass) * sde.beta)
    flows = [scipy.linalg.expm(_drift(sde) * duration * (node + 1) / 2) for node in nodes]
    return duration * weights / 2, g * np.stack([flow[:, 1] for flow in flows])


def _noise(sde, duration):
    """Q = ∫ Φ(r) G Gᵀ Φ(r)ᵀ dr."""
    weights, q = _paths(sde, duration)
    return (q.T * weights) @ q


def _determinants(sde, duration, v):
    """|Q| and |Q + v vᵀ|, as integrals of squares, in which no large numbers cancel.

    |Q| = ½ ∬ (q_x(r) q_v(r') − q_v(r) q_x(r'))² dr dr' and |Q + v vᵀ| = |Q| + ∫ (v_x q_v − v_v q_x)² dr, q(r) = Φ(r) G.
    """
    weights, q = _paths(sde, duration)
    cross = np.outer(q[:, 0], q[:, 1])
    alone = weights @ (cross - cross.T) ** 2 @ weights / 2
    return alone, alone + weights @ (v[0] * q[:, 1] - v[1] * q[:, 0]) ** 2


def _exact(sde, t):
    """Mean and covariance of z_t for data N(MEAN, STD²), in one dimension."""
    flow = scipy.linalg.expm(_drift(sde) * t)
    start = np.diag([STD**2, sde.gamma * sde.mass])
    return flow @ [MEAN, 0], flow @ start @ flow.T + _noise(sde, t)


def _moments(sde, t):
    """The same, traceable, for t `(batch,)`; `test_gaussian_moments` holds it to `_exact`."""
    flow = sde.transition_matrix(jnp.zeros_like(t), t)
    start = jnp.asarray([STD**2, sde.gamma * sde.mass], t.dtype)[None, None]
    return flow[..., 0] * MEAN, (flow * start) @ jnp.swapaxes(flow, 1, 2) + sde.covariance(t, "z_0")


def _score(sde, z, t):
    """∇_z log p_t(z), `(batch, 2)`."""
    mean, covariance = _moments(sde, t)
    return -jnp.linalg.solve(covariance, (z - mean)[..., None])[..., 0]


def _posterior_mean(sde, z, t):
    """E[x_0 | z] of jointly Gaussian x_0 and z, `(batch, 1)`."""
    mean, covariance = _moments(sde, t)
    cross = STD**2 * sde.transition_matrix(jnp.zeros_like(t), t)[..., 0]
    return MEAN + jnp.sum(cross * jnp.linalg.solve(covariance, (z - mean)[..., None])[..., 0], axis=1, keepdims=True)


def _denoiser(sde):
    """The exact score of the velocity."""
    return AugmentedDenoiser(sde=sde, function=lambda z, t, _: _score(sde, z, t)[:, 1:], prediction="score")


def _keys(count, name="cld"):
    return rng.for_samples(rng.stream(0, name), jnp.arange(count))


# --- the process ----------------------------------------------------------------------------------------------------


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
        flow = scipy.linalg.expm(_drift(sde) * t[row])
        noise, first = _noise(sde, t[row]), np.sqrt(sde.gamma * sde.mass) * flow[:, 1]
        determinants = _determinants(sde, t[row], first)
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
    np.testing.assert_allclose(drift[0], _drift(sde), rtol=1e-15)
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
    sde, keys = CLD(), _keys(4000, "prior")
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
    for index in (39, 199, 599, 1999):
        t = jnp.full(1, (index + 1) * h, jnp.float32)
        mean, cholesky = sde.marginal(jnp.full((1, 1), x_0), t)
        l_xx, l_xv, l_vv = (float(factor[0]) for factor in cholesky)
        sigma = np.array([[l_xx**2, l_xx * l_xv], [l_xx * l_xv, l_xv**2 + l_vv**2]])
        z = np.stack([xs[index], vs[index]]).astype(np.float64)
        scale = np.sqrt(np.diag(sigma))
        # 5 standard errors, and for the bias of 2000 Euler steps: h ‖A‖ t ~ 1 % of what the mean has moved through.
        bias = h * np.abs(_drift(sde)).max() * x_0
        assert np.all(np.abs(z.mean(axis=1) - np.asarray(mean)[0]) < 5 * scale / np.sqrt(paths) + bias)
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
        (lambda: AugmentedEulerMaruyama(denoiser=_denoiser(sde), eta=-1.0), "eta"),
    ):
        with pytest.raises(UserError, match=named):
            make()


# --- the denoiser ---------------------------------------------------------------------------------------------------


def test_gaussian_moments():
    for sde in (CLD(), MILD):
        with jax.enable_x64(True):
            t = jnp.asarray([sde.t_min, 0.1, 0.5, sde.T])
            mean, covariance = map(np.asarray, _moments(sde, t))
        for row, time in enumerate(np.asarray(t)):
            expected = _exact(sde, time)
            np.testing.assert_allclose(mean[row], expected[0], rtol=1e-11, atol=1e-14)
            np.testing.assert_allclose(covariance[row], expected[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_prediction_gives_the_same_denoiser(dtype):
    """Exact ε̂_v, mixed residual, score and posterior mean of Gaussian data, each from each."""
    sde = CLD()
    with jax.enable_x64(dtype == "float64"):
        t = jnp.asarray(np.geomspace(sde.t_min, sde.T, 12), dtype)
        noise = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)), dtype)
        mean, cholesky = sde.marginal(jnp.full((12, 1), 0.8, dtype), t)
        z = mean + cholesky.times(noise)
        # The oracles in float64 from the same float32 inputs, since a 2×2 solve near t_min is ill-conditioned.
        with jax.enable_x64(True):
            wide_t, wide = jnp.asarray(np.asarray(t, np.float64)), jnp.asarray(np.asarray(z, np.float64))
            score = np.asarray(_score(sde, wide, wide_t)[:, 1:])
            posterior = np.asarray(_posterior_mean(sde, wide, wide_t))
            l_vv, vv = np.asarray(sde.cholesky(wide_t).l_vv)[:, None], np.asarray(sde.covariance(wide_t))[:, 1, 1:]
            flow = np.asarray(sde.transition_matrix(0 * wide_t, wide_t))
            slope = np.asarray(sde.covariance(wide_t))[:, :1, 1] / np.asarray(sde.covariance(wide_t))[:, :1, 0]
            gain = slope * flow[:, :1, 0] - flow[:, 1:, 0]
        epsilon = -l_vv * score
        x, v = np.split(np.asarray(z, np.float64), 2, axis=1)
        values = {"epsilon": epsilon, "score": score, "mixed": epsilon - l_vv * v / vv, "x_0": posterior}
        assert set(values) == set(PREDICTIONS)
        for name, value in values.items():
            denoiser = AugmentedDenoiser(
                sde=sde, function=lambda z, t, _, value=value: jnp.asarray(value, dtype), prediction=name
            )
            got = [np.asarray(f(z, t), np.float64) for f in (denoiser, denoiser.epsilon, denoiser.score)]
            # Of each conversion, 20 roundings of the largest term of its sum: x_0 is hard to tell from ε_v at T, where
            # nearly nothing of it is left, and ε_v from x_0 at t_min, where ρ x and the data differ by little.
            rounding = 20 * np.finfo(dtype).eps
            terms = np.abs(slope * x) + np.abs(v) + np.abs(gain * posterior) + np.abs(l_vv * epsilon)
            assert np.all(np.abs(got[0] - posterior) <= rounding * terms / gain), name
            for value_of_noise in (got[1], -l_vv * got[2]):
                assert np.all(np.abs(value_of_noise - epsilon) <= rounding * terms / l_vv), name


def test_the_reverse_family_keeps_the_marginals():
    """For a Gaussian, d/dt of mean and covariance under `reverse` is that of the forward process, for any η."""
    sde, etas = CLD(), (0.0, 0.5, 1.0)
    with jax.enable_x64(True):
        t = jnp.asarray(np.linspace(sde.t_min, sde.T, 9))
        (mean, covariance), rates = jax.jvp(lambda s: _moments(sde, s), (t,), (jnp.ones_like(t),))
        mean_rate, covariance_rate = map(np.asarray, rates)
        for eta in etas:
            drift = lambda z, eta=eta: _denoiser(sde).reverse(z, t, eta)
            centre, diffusion = drift(mean)
            columns = [np.asarray(drift(mean + unit[None])[0] - centre) for unit in jnp.eye(2)]
            slope = np.stack(columns, axis=2)
            np.testing.assert_allclose(centre, mean_rate, rtol=1e-9, atol=1e-10)
            change = slope @ np.asarray(covariance)
            change = change + np.swapaxes(change, 1, 2)
            change[:, 1, 1] -= np.asarray(diffusion)[:, 0] ** 2
            # A difference of terms as large as g² (1 + η²) and the score's slope 1/(γ M) = 100 times that.
            np.testing.assert_allclose(change, covariance_rate, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(_denoiser(sde).velocity(mean, t), drift(mean, 0.0)[0])


def test_a_network_sees_the_state_and_the_label():
    sde = CLD(T=2.0)
    seen = {}

    def apply(params, z, label, condition, *, train, rng):
        seen.update(shape=z.shape, label=np.asarray(label), condition=condition, train=train, rng=rng)
        return params * z

    z, t = jnp.arange(16.0).reshape(2, 2, 4), jnp.asarray([0.5, 2.0])
    denoiser = network_denoiser(sde, apply, jnp.float32(3), prediction="epsilon", train=True, rng="key")
    np.testing.assert_array_equal(denoiser.epsilon(z, t, "c"), 3 * np.asarray(z)[..., 2:])
    assert (seen["shape"], seen["condition"], seen["train"], seen["rng"]) == ((2, 2, 4), "c", True, "key")
    np.testing.assert_allclose(seen["label"], [999 / 4, 999])
    # The default is the mixed score: an output of zero is the Gaussian −v/Σ_vv.
    silent = network_denoiser(sde, apply, jnp.float32(0))
    vv = np.asarray(sde.covariance(t))[:, 1, 1]
    np.testing.assert_allclose(silent.score(z, t), -np.asarray(z)[..., 2:] / vv[:, None, None], rtol=1e-5)
    assert silent(z, t).shape == (2, 2, 2)
    assert silent.velocity(z, t).shape == (2, 2, 4)


# --- objectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["sigma2", "likelihood"])
@pytest.mark.parametrize("given", ["x_0", "z_0"])
def test_the_minimiser_is_the_exact_score(given, weighting):
    """Data N(MEAN, STD²): at ε̂_v + c·(1, x, v) the loss has gradient 0 in c at c = 0, and its closed-form minimum.

    Given x_0 or z_0, with l = l_vv of that law, the target −ε_v/l has variance 1/l², of which the score explains
    Var s_v = (C⁻¹)_vv, C the covariance of z_t. So the minimum is λ (1/l² − (C⁻¹)_vv), over λ = σ² or g².
    """
    # A wide first velocity and an early time, at which the two laws' l_vv differ by a tenth.
    sde, count = CLD(gamma=0.6), 40000
    keys = _keys(count, "objective")
    x_0 = MEAN + STD * rng.normal(rng.child(keys, 9), (1,))

    def losses(c, x_0, keys, t):
        shift = lambda z: (c[0] + c[1] * z[:, :1] + c[2] * z[:, 1:]) / sde.cholesky(t).l_vv[:, None]
        denoiser = AugmentedDenoiser(
            sde=sde, function=lambda z, t, _: _score(sde, z, t)[:, 1:] + shift(z), prediction="score"
        )
        loss = Hybrid(given=given)(denoiser, WEIGHTINGS[weighting](), x_0, None, keys, t, 2 * jnp.ones_like(t))
        return jnp.stack([loss.total, loss.at_time])

    both = jax.jit(
        lambda x_0, keys, t: (losses(jnp.zeros(3), x_0, keys, t), jax.jacfwd(losses)(jnp.zeros(3), x_0, keys, t))
    )
    for time in (0.02, 0.25, 0.8):
        t = jnp.full(count, time)
        values, gradients = (np.asarray(v, np.float64) for v in both(x_0, keys, t))
        np.testing.assert_allclose(values[0], 2 * values[1], rtol=1e-6)  # the factor
        value, gradient = values[1], gradients[1]
        assert value.shape == (count,)
        l_vv = float(sde.cholesky(t[:1], given).l_vv[0])
        sigma = float(sde.sigma(t[:1])[0])
        precision = np.linalg.inv(_exact(sde, float(np.float32(time)))[1])[1, 1]
        weight = sigma**2 if weighting == "sigma2" else 2 * 2 * np.sqrt(sde.mass) * sde.beta
        minimum = weight * (1 / l_vv**2 - precision)
        assert 0 < minimum < weight / l_vv**2
        # 5 standard errors.
        assert abs(value.mean() - minimum) < 5 * value.std() / np.sqrt(count)
        assert np.all(np.abs(gradient.mean(axis=0)) < 5 * gradient.std(axis=0) / np.sqrt(count))


def test_a_loss_does_not_depend_on_its_batch():
    sde, keys = CLD(), _keys(8, "batch")
    for given in ("x_0", "z_0"):
        parts = []
        for part in (slice(None), slice(3, 4)):
            count = len(keys[part])
            t, x_0 = jnp.full(count, 0.3), jnp.zeros((count, 2, 1))
            args = (WEIGHTINGS["sigma2"](), x_0, None, keys[part], t, jnp.ones(count))
            denoiser = AugmentedDenoiser(sde=sde, function=lambda z, t, condition: sde.data_of(z))
            parts.append(np.asarray(Hybrid(given=given)(denoiser, *args).total))
        assert parts[0].shape == (8,)
        np.testing.assert_allclose(parts[0][3:4], parts[1], rtol=1e-5)


# --- the probability-flow ODE ---------------------------------------------------------------------------------------


def _flow(denoiser, z, t, s, tolerance):
    def vector_field(time, sample, _):
        return denoiser.velocity(sample[None], jnp.asarray(time, sample.dtype)[None])[0]

    return integrate(vector_field, z, None, t, s, rtol=tolerance, atol=tolerance)


def test_the_flow_takes_the_prior_to_the_data_and_back():
    """The flow of a Gaussian is affine, so the images of 0, e_x and e_v give the law that it makes of the prior."""
    sde = CLD()
    with jax.enable_x64(True):
        denoiser = _denoiser(sde)
        z_T = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-0.7, 0.4]])
        there = jax.jit(lambda z: _flow(denoiser, z, sde.T, sde.t_min, 1e-8))(z_T)
        back = jax.jit(lambda z: _flow(denoiser, z, sde.t_min, sde.T, 1e-8))(there.y)
        z = np.asarray(there.y)
    assert not np.any(there.failed)
    # The errors of a tolerance of 1e-8, and what the flow amplifies: the velocity's spread grows by √(1/γ) = 5.
    np.testing.assert_allclose(back.y, z_T, rtol=0, atol=1e-6)
    linear = (z[1:3] - z[0]).T
    np.testing.assert_allclose(z[0] + linear @ np.asarray(z_T)[3], z[3], rtol=0, atol=1e-6)
    mean, covariance = _exact(sde, sde.t_min)
    # The prior is not the law at T, whose mean is MEAN e^{−8} (9, −4) = (0.0015, −0.0007): 0.002 standard deviations.
    scale = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(z[0] - mean) < 3e-3 * scale)
    np.testing.assert_allclose(
        linear @ np.diag([1, sde.mass]) @ linear.T / np.outer(scale, scale),
        covariance / np.outer(scale, scale),
        rtol=0,
        atol=1e-4,
    )


def test_the_joint_likelihood_is_exact():
    """log p(x, v) at t_min by the change of variables along the flow, at tolerance 1e-5."""
    sde = CLD()
    mean, covariance = _exact(sde, sde.t_min)
    z = np.random.default_rng(1).multivariate_normal(mean, covariance, size=16)
    end_mean, end_covariance = _exact(sde, sde.T)
    with jax.enable_x64(True):
        denoiser = _denoiser(sde)

        def vector_field(t, state, _):
            velocity = lambda sample: denoiser.velocity(sample[None], jnp.asarray(t)[None])[0]
            return velocity(state[0]), jnp.trace(jax.jacfwd(velocity)(state[0]))

        solve = jax.jit(lambda s: integrate(vector_field, s, None, sde.t_min, sde.T, rtol=1e-5, atol=1e-5))
        solution = solve((jnp.asarray(z), jnp.zeros(16)))
        latent, divergence = map(np.asarray, solution.y)
        prior = np.asarray(sde.prior_log_prob(solution.y[0]))
    exact = scipy.stats.multivariate_normal(mean, covariance).logpdf(z)
    terminal = scipy.stats.multivariate_normal(end_mean, end_covariance).logpdf(latent)
    assert np.max(np.abs(terminal + divergence - exact)) < 1e-3
    # With the prior in place of the law at T, its mismatch comes on top: mean 0.0015 at 2.5 standard deviations.
    assert np.max(np.abs(prior + divergence - exact)) < 1e-2


def test_the_bound_on_the_likelihood():
    """Of N(MEAN, STD²) in closed form: E_q[log p(x, v)] + H(q), q = N(b x/a, Σ_vv); its gap is a KL divergence.

    In one dimension the probe is exact, so that the draw of v is the only chance.
    """
    sde, count = CLD(), 400
    mean, covariance = _exact(sde, sde.t_min)
    precision = np.linalg.inv(covariance)
    flow = scipy.linalg.expm(_drift(sde) * sde.t_min)
    variance = _noise(sde, sde.t_min)[1, 1] + sde.gamma * sde.mass * flow[1, 1] ** 2
    x = np.array([MEAN, MEAN + STD, MEAN - 2 * STD])
    away = np.stack([x, flow[1, 0] / flow[0, 0] * x], axis=1) - mean
    joint = scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf(away) - 0.5 * precision[1, 1] * variance
    bound = joint + 0.5 * np.log(2 * np.pi * np.e * variance)
    gap = scipy.stats.norm(mean[0], np.sqrt(covariance[0, 0])).logpdf(x) - bound
    assert np.all((gap > 0) & (gap < 1e-2))
    with jax.enable_x64(True):
        solve = jax.jit(lambda x, keys: log_likelihood_bound(_denoiser(sde), x, keys, rtol=1e-5, atol=1e-5))
        result = solve(jnp.asarray(np.repeat(x, count)[:, None]), _keys(3 * count, "bound"))
    assert not np.any(result.failed)
    values = np.asarray(result.log_prob).reshape(3, count)
    # 5 standard errors, and what the prior differs from the law at T (see the joint likelihood).
    assert np.all(np.abs(values.mean(axis=1) - bound) < 5 * values.std(axis=1) / np.sqrt(count) + 5e-3)


# --- solvers --------------------------------------------------------------------------------------------------------

DRAWS = {AugmentedEulerMaruyama: [1], SSCS: [2, 2], SSCSMidpoint: [2, 2]}


def _output_law(solver, start, grid, monkeypatch):
    """Mean and covariance of the output for a start N(*start), without Monte-Carlo error.

    A step is affine in the state and its noise, so that its images of unit vectors are its matrix. Noise is fed in by
    a `rng.normal` that hands out the unit vectors of each draw in turn.
    """
    sizes = DRAWS[type(solver)]
    columns = sum(sizes)
    rows = 3 + columns
    states = np.zeros((rows, 2))
    states[1:3] = np.eye(2)
    units = np.zeros((rows, columns))
    units[3:] = np.eye(columns)
    supply = [jnp.asarray(part) for part in np.split(units, np.cumsum(sizes)[:-1], axis=1)]
    calls = []

    def normal(keys, shape, dtype=None):
        noise = supply[len(calls) % len(supply)]
        calls.append(shape)
        assert noise.shape[1:] == shape
        return noise

    monkeypatch.setattr(rng, "normal", normal)

    def body(law, times):
        mean, covariance = law
        ones = jnp.ones(rows)
        carry = solver.init(jnp.asarray(states), grid)
        out = solver.step(carry, times[0] * ones, times[1] * ones, _keys(rows)).x
        matrix, noise = (out[1:3] - out[:1]).T, (out[3:] - out[:1]).T
        return (matrix @ mean + out[0], matrix @ covariance @ matrix.T + noise @ noise.T), None

    pairs = jnp.asarray(np.stack([grid[:-1], grid[1:]], axis=1))
    (mean, covariance), _ = jax.jit(lambda law: jax.lax.scan(body, law, pairs))(tuple(map(jnp.asarray, start)))
    monkeypatch.undo()
    return np.asarray(mean), np.asarray(covariance)


@pytest.mark.parametrize("solver", [AugmentedEulerMaruyama, SSCS, SSCSMidpoint], ids=lambda solver: solver.__name__)
def test_weak_order(solver, monkeypatch):
    """Errors of the output's mean and covariance on a Gaussian, from the exact law at T, against the exact at t_min."""
    steps, errors = (40, 80, 160), []
    start, end = _exact(MILD, MILD.T), _exact(MILD, MILD.t_min)
    with jax.enable_x64(True):
        for count in steps:
            grid = np.linspace(MILD.T, MILD.t_min, count + 1)
            mean, covariance = _output_law(solver(denoiser=_denoiser(MILD)), start, grid, monkeypatch)
            errors.append([np.abs(mean - end[0]).max(), np.abs(covariance - end[1]).max()])
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    print(f"\n{solver.__name__}: errors {errors}, slopes {slopes.tolist()}")
    # Between 80 and 160 steps the next order still adds to the slope a part of its size.
    assert np.all(np.abs(slopes[-1] - solver.order) < 0.15), (errors, slopes)


@pytest.mark.parametrize("solver", [AugmentedEulerMaruyama, SSCS, SSCSMidpoint], ids=lambda solver: solver.__name__)
def test_the_loop_drives_the_solver(solver):
    sde, steps, count = CLD(), 20, 8
    solver, keys = solver(denoiser=_denoiser(sde)), _keys(count, "run")
    grid = np.linspace(sde.T, sde.t_min, steps + 1)
    z_T = sde.prior_sample(rng.child(keys, 0), (1,))
    assert solver.stochastic
    drive = jax.jit(lambda z, keys: [run(solver, z, grid, keys, last=last) for last in ("none", "mean", "denoise")])
    none, mean, denoise = drive(z_T, keys)
    assert none.x.shape == mean.x.shape == denoise.x.shape == (count, 1)
    assert np.all(none.evaluations == steps * solver.evaluations_per_step)
    assert np.all(denoise.evaluations == steps * solver.evaluations_per_step + 1)
    # Only the splitting's last draw reaches the position; D and the position differ by what t_min leaves, 0.0018.
    assert np.any(none.x != mean.x) == isinstance(solver, SymmetricSplitting)
    assert np.all(none.x != denoise.x)
    np.testing.assert_allclose(none.x, denoise.x, atol=0.02)
    alone = jax.jit(lambda z, keys: run(solver, z, grid, keys))(z_T[3:4], keys[3:4])
    np.testing.assert_allclose(alone.x[0], none.x[3], rtol=1e-4, atol=1e-5)


def test_euler_without_noise_draws_none():
    solver = AugmentedEulerMaruyama(denoiser=_denoiser(MILD), eta=0.0)
    assert not solver.stochastic
    grid, z_T = np.linspace(MILD.T, MILD.t_min, 5), jnp.asarray([[0.3, -0.2]])
    one, other = (run(solver, z_T, grid, _keys(1, name)).x for name in ("a", "b"))
    np.testing.assert_array_equal(one, other)


def test_an_equilibrium_step_of_the_splitting_is_exact(monkeypatch):
    """Data that are the prior, N(0, I), with γ = 1: S vanishes, and any number of steps keeps the law."""
    sde = CLD(gamma=1.0)
    start = np.zeros(2), np.diag([1, sde.mass])
    with jax.enable_x64(True):
        denoiser = AugmentedDenoiser(
            sde=sde, function=lambda z, t, _: -sde.velocity_of(z) / sde.mass, prediction="score"
        )
        mean, covariance = _output_law(SSCS(denoiser=denoiser), start, np.array([1.0, 0.4, 0.001]), monkeypatch)
    np.testing.assert_allclose(mean, start[0], atol=1e-14)
    np.testing.assert_allclose(covariance, start[1], atol=1e-13)


# --- by config ------------------------------------------------------------------------------------------------------


def test_the_flow_samples_data():
    """`ode`, the solver of the affine processes, on this one: samples are data, N(MEAN, STD²)."""
    sampler, count = Sampler(solver=ProbabilityFlowODE, options={"rtol": 1e-4, "atol": 1e-4}, steps=1), 2000
    samples = jax.jit(lambda keys: sampler(_denoiser(CLD()), keys, (1,)))(_keys(count, "flow"))
    assert samples.x.shape == (count, 1)
    assert not np.any(samples.failed)
    x = np.asarray(samples.x, np.float64)
    # 5 standard errors.
    assert abs(x.mean() - MEAN) < 5 * STD / np.sqrt(count)
    assert abs(x.std() / STD - 1) < 5 / np.sqrt(2 * count)


def test_what_is_for_it_and_what_is_not():
    """Each row of a table either refuses the process or works on it; what it shares with VP, it shares."""
    sde, t = CLD(), jnp.asarray([0.1, 0.7])

    def accepted(rows, process):
        names = set()
        for name, row in rows.items():
            try:
                row().check(process)
                names.add(name)
            except UserError:
                pass
        return names

    assert accepted(OBJECTIVES, sde) == {"hybrid"}
    assert accepted(OBJECTIVES, VP()) == set(OBJECTIVES) - {"hybrid"}
    assert accepted(WEIGHTINGS, sde) == {"sigma2", "likelihood"}
    assert accepted(TIMES, sde) == {"uniform", "logit_normal", "loss_second_moment"}
    for name in accepted(WEIGHTINGS, sde):
        assert np.all(np.asarray(WEIGHTINGS[name]()(sde, t)) > 0)
    for name in accepted(TIMES, sde):
        for spread in (False, True):
            times = Times(TIMES[name](), spread)
            drawn, factor = times.draw(sde, _keys(64, name), times.distribution.init())
            assert np.all((drawn >= np.float32(sde.t_min)) & (drawn <= sde.T))
            np.testing.assert_allclose(factor, 1, rtol=1e-5)
    for name in PREDICTIONS:
        Parameterisation(prediction=name).check(sde)
    Parameterisation(prediction="v").check(VP())


def test_the_model_has_the_denoiser_of_its_process():
    apply = lambda params, z, label, condition, *, train, rng: params * z
    model = Model(sde=CLD(), parameterisation=Parameterisation(prediction="mixed"), apply=apply)
    denoiser = model.denoiser({"network": jnp.float32(0.5)})
    assert denoiser == AugmentedDenoiser(sde=CLD(), function=denoiser.function, prediction="mixed")
    assert denoiser.on(CLD()) is denoiser
    with pytest.raises(UserError, match="alone"):
        denoiser.on(CLD(beta=3.0))


VARIANT = f"{program.CONFIG}:cld"
REFUSED = {
    "trace": ("likelihood", ["likelihood.trace=exact"], ["likelihood.trace", "'rademacher'"]),
    "dequantisation": ("all", ["likelihood.dequantisation=variational"], ["likelihood.dequantisation", "uniform"]),
    "task": ("train", ["sampling.task=interpolate"], ["sampling.task='interpolate'", "'generate'"]),
    "shift": ("train", ["sde.shift=2"], ["sde: shift", "leave them out"]),
    "zero terminal SNR": ("train", ["sde.zero_terminal_snr=True"], ["zero_terminal_snr", "cld"]),
    "another process": ("train", ["sampling_sde.name=vp"], ["sampling_sde", "'training'"]),
    "sampling with it": ("train", ["sampling_sde.name=cld"], ["sampling_sde.name", "'cld'", "training"]),
    "objective": ("train", ["objective.name=denoising"], ["objective", "'hybrid'"]),
    "weighting": ("train", ["weighting.name=min_snr"], ["weighting", "'sigma2'"]),
    "times": ("train", ["times.name=importance"], ["times", "'uniform'"]),
    "prediction": ("train", ["parameterisation.prediction=v"], ["prediction 'v'", "mixed"]),
    "noise condition": ("train", ["parameterisation.noise_condition=log_snr"], ["noise_condition", "'time'"]),
    "input scale": ("train", ["parameterisation.input_scale=unit_variance"], ["input_scale", "'none'"]),
    "solver": ("train", ["sampling.samplers=pc,sscs"], ["samplers.pc: this solver", "sscs_midpoint"]),
    "grid": ("train", ["samplers.sscs.grid=log_snr"], ["samplers.sscs: grid", "'uniform'"]),
    "everything of it with another": (
        "train",
        ["sde.name=vp"],
        ["prediction 'mixed'", "'denoising'", "samplers.sscs: this solver"],
    ),
}


@pytest.mark.parametrize(("mode", "overrides", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused(mode, overrides, expected, tmp_path, capsys):
    arguments = program.flags(tmp_path / "run", mode, *(f"--config.{each}" for each in overrides), config=VARIANT)
    assert program.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("error: ")) == ("", 1, True)
    for text in expected:
        assert text in err
    assert not list(tmp_path.iterdir())


def test_trained_and_sampled_by_config(tmp_path):
    settings = (
        *program.TINY_TRAINING,
        "--config.training.duration=3 steps",
        "--config.training.sample_every=2 steps",
        "--config.sampling.samplers=sscs",
        "--config.sampling.num_samples=8",
        "--config.sampling.batch_size=8",
        "--config.samplers.sscs.steps=3",
    )
    for mode in ("train", "sample"):
        assert program.main(program.flags(tmp_path, mode, *settings, config=VARIANT)) == 0
    assert (tmp_path / "samples" / "training" / "step_00000002.png").stat().st_size > 0
    arrays = np.load(tmp_path / "samples" / "sscs.npz")
    assert arrays["samples"].shape == arrays["image"].shape == (8, 8, 8, 1)
    assert np.all(np.isfinite(arrays["samples"]))
    assert np.all(arrays["evaluations"] == 4)
