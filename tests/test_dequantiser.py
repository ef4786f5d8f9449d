"""The learnt dequantiser: its density against the exact Jacobian, its start, its range, and what it can learn."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from score_sde import rng
from score_sde.errors import UserError
from score_sde.models.dequantiser import Dequantiser, FlowDequantiser, logistic, mixture_logit

SMALL = FlowDequantiser(channels=6, blocks=1, couplings=3, components=3)


@functools.cache
def _flow(shape):
    return Dequantiser(SMALL, shape)


@functools.cache
def _init(shape):
    return jax.jit(_flow(shape).init)(jax.random.key(0))


@functools.cache
def _moved(shape, size=0.5):
    """Parameters off their initial values, by `size` in what a layer puts out, where nothing is zero any more."""
    leaves, tree = jax.tree.flatten(_init(shape))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    move = lambda leaf, key: (
        leaf + size * jax.random.normal(key, leaf.shape) / np.sqrt(max(1, leaf.size // leaf.shape[-1]))
    )
    return jax.tree.unflatten(tree, [move(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


@functools.cache
def _apply(shape):
    return jax.jit(_flow(shape).apply)


def _keys(batch, seed=2):
    return rng.for_samples(jax.random.key(seed), jnp.arange(batch))


def _image(batch, shape):
    """Levels of 256, scaled to [−1, 1)."""
    return jax.random.randint(jax.random.key(3), (batch, *shape), 0, 256).astype(jnp.float32) / 128 - 1


def _to_64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)


# --- the density ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)], ids=str)
def test_log_q_is_that_of_the_exact_jacobian(shape):
    """log q(u) = log p(e) − log |du/de|, in float64, with every value moved and none of them alone."""
    params, image = _moved(shape), _image(4, shape)
    with jax.enable_x64(True):
        params, image = _to_64(params), _to_64(image)
        noise = jax.random.logistic(jax.random.key(4), (4, *shape), jnp.float64)
        u, log_q = jax.jit(_flow(shape).transport)(params, image, noise)
        one = lambda e, i: _flow(shape).transport(params, i[None], e[None])[0][0].reshape(-1)
        jacobian = jax.jit(jax.vmap(jax.jacfwd(one)))(noise, image).reshape(4, 4, 4)
    assert u.dtype == log_q.dtype == np.float64
    _, log_det = np.linalg.slogdet(np.asarray(jacobian))
    base = scipy.stats.logistic.logpdf(np.asarray(noise)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(log_q, base - log_det, rtol=0, atol=1e-10)
    assert np.abs(np.asarray(log_q)).min() > 1e-2
    # The couplings bind the values together: an off-diagonal half of the Jacobian is there.
    assert (np.abs(np.asarray(jacobian)) > 1e-6).sum(axis=(1, 2)).min() > 4


def test_float32_is_close_to_float64():
    """Rounding alone: some 1e-6 a value and a coupling where |z| < 17."""
    shape = (2, 2, 1)
    inputs = _moved(shape), _image(64, shape), logistic(_keys(64), shape)
    single = jax.jit(_flow(shape).transport)(*inputs)
    with jax.enable_x64(True):
        double = jax.jit(_flow(shape).transport)(*_to_64(inputs))
    np.testing.assert_allclose(single[0], double[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(single[1], double[1], rtol=0, atol=1e-4)


def test_the_density_integrates_to_one():
    """∫ du over (0, 1)² is ∫ p(e)/q(u(e)) de = E_q[1/q] = 1: no part of the square is left out or covered twice.

    The trapezoid rule on e = 5 sinh t, |e| < 1200, converges exponentially for an analytic integrand that vanishes at
    the ends; every other point is enough to show that it has.
    """
    shape, t = (1, 2, 1), np.linspace(-6, 6, 481)
    one, weight = 5 * np.sinh(t), 5 * np.cosh(t) * (t[1] - t[0])
    e = np.stack(np.meshgrid(one, one, indexing="ij"), axis=-1)
    transport, noise = jax.jit(_flow(shape).transport), jnp.asarray(e.reshape(-1, *shape), jnp.float32)
    for level in (-1.0, 0.5):
        _, log_q = transport(_moved(shape), jnp.full(noise.shape, level), noise)
        log_p = scipy.stats.logistic.logpdf(np.asarray(noise, np.float64)).sum(axis=(1, 2, 3))
        integrand = np.exp(log_p - np.asarray(log_q, np.float64)).reshape(len(t), len(t)) * np.outer(weight, weight)
        # float32: log q where |e| is some tens is known to 1e-5.
        np.testing.assert_allclose([integrand.sum(), 4 * integrand[::2, ::2].sum()], 1, rtol=0, atol=1e-4)
        near = (np.abs(noise) < 3).all(axis=(1, 2, 3))
        assert np.std(np.asarray(log_q)[near]) > 0.1


def test_the_coupling_is_the_mixtures_logit_far_into_its_tails():
    """Against scipy in float64, where F and 1 − F are sums of σ, for |z| up to 400, where either is 0 in float32."""
    z = np.linspace(-400, 400, 161)[None, None, None]
    weight, mean, log_scale = np.array([0.2, 0.5, 0.3]), np.array([-3.0, 0.1, 4.0]), np.array([-0.5, 0.4, 0.0])
    w = (z[..., None] - mean) * np.exp(-log_scale)
    below, above = (weight * scipy.special.expit(w)).sum(-1), (weight * scipy.special.expit(-w)).sum(-1)
    density = (weight * np.exp(-log_scale) * scipy.special.expit(w) * scipy.special.expit(-w)).sum(-1)
    full = lambda values: jnp.broadcast_to(jnp.asarray(values, jnp.float32), (*z.shape, 3))
    logit, log_derivative = jax.jit(mixture_logit)(
        jnp.asarray(z, jnp.float32), full(np.log(weight)), full(mean), full(log_scale)
    )
    # float32: 24 bits of numbers up to 700.
    np.testing.assert_allclose(logit, np.log(below) - np.log(above), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(log_derivative, np.log(density) - np.log(below) - np.log(above), rtol=0, atol=3e-4)


# --- the start -----------------------------------------------------------------------------------------------------


def test_at_the_start_q_is_uniform():
    """log q = 0 up to float32's rounding of terms up to 17, and u passes Kolmogorov and Smirnov's test."""
    shape, batch = (4, 4, 2), 500
    u, log_q = _apply(shape)(_init(shape), _image(batch, shape), _keys(batch))
    assert u.shape == (batch, *shape)
    assert u.dtype == log_q.dtype == jnp.float32
    np.testing.assert_allclose(log_q, np.zeros(batch), rtol=0, atol=32 * 1e-6)
    assert scipy.stats.kstest(np.asarray(u, np.float64).ravel(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.asarray(u, np.float64).reshape(batch, -1).T)
    assert np.abs(correlation - np.eye(32)).max() < 6 / np.sqrt(batch)


def test_the_base_is_logistic():
    e = np.asarray(jax.jit(logistic, static_argnums=1)(_keys(500), (100,)), np.float64)
    assert scipy.stats.kstest(e.ravel(), "logistic").pvalue > 1e-3


def test_the_base_is_finite_and_symmetric_at_the_ends_of_the_uniform_draws(monkeypatch):
    """The smallest and the largest float32 that jax's generator gives: 0 and 1 − 2⁻²³."""
    ends = jnp.array([[0.0, 1 - 2.0**-23]], jnp.float32)
    monkeypatch.setattr(rng, "uniform", lambda keys, shape: ends)
    e = np.asarray(logistic(_keys(1), (2,)))[0]
    np.testing.assert_allclose(e, np.array([-24, 24]) * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(scipy.special.expit(e.astype(np.float64)), [2.0**-24, 1 - 2.0**-24], rtol=2e-6)


def test_components_part_at_the_first_step():
    """Gradients of equal size would keep the mixture's components equal, one logistic, whatever the optimiser."""
    shape = (1, 2, 1)
    loss = lambda params: jnp.mean(jnp.sin(5 * _flow(shape).apply(params, _image(64, shape), _keys(64))[0]))
    gradient = jax.jit(jax.grad(loss))(_init(shape))["couplings"][0]["conv_out"]["bias"]
    means = np.asarray(gradient)[2:].reshape(3, 3)[1]
    assert np.all(np.abs(np.diff(means)) > 0.1 * np.abs(means).min())
    assert np.abs(means).min() > 0


def test_init_is_its_key_and_traceable():
    flow = _flow((2, 2, 1))
    shapes = jax.eval_shape(flow.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    same, other = jax.jit(flow.init)(jax.random.key(0)), jax.jit(flow.init)(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, _init((2, 2, 1)))
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(other), strict=True))


# --- range and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3.0, 30.0, 1000.0])
def test_u_lies_inside_the_open_interval_whatever_the_parameters(size):
    """Parameters with which σ(z) is 0 and 1 in float32; the gradient of log q stays finite as well."""
    shape, batch = (4, 4, 2), 64
    params = _moved(shape, size)
    u, log_q = _apply(shape)(params, _image(batch, shape), _keys(batch))
    assert np.asarray(u).min() > 0
    assert np.asarray(u).max() < 1
    assert np.all(np.isfinite(log_q))
    # Both ends are met, so that this is a test.
    assert np.asarray(u).min() == np.finfo(np.float32).tiny
    assert np.asarray(u).max() == 1 - 2.0**-24
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(_gradient(shape)(params)))


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_the_bounds_hold_where_every_coupling_pushes_the_same_way(end):
    """All of s, a, μ and b at their bounds, in the deepest flow there may be: finite, and inside."""
    flow, shape = Dequantiser(dataclasses.replace(SMALL, couplings=16, components=1), (1, 2, 1)), (1, 2, 1)
    params = jax.jit(flow.init)(jax.random.key(0))
    for coupling in params["couplings"].values():
        # log_gain up, shift to one side, weight, mean to the other side, log_scale down
        coupling["conv_out"]["bias"] = 1e9 * jnp.array([1, end, 0, -end, -1], jnp.float32)
    u, log_q = jax.jit(flow.apply)(params, _image(8, shape), _keys(8))
    assert np.all((np.asarray(u) > 0) & (np.asarray(u) < 1))
    assert np.all(np.isfinite(log_q))


def test_a_nan_is_not_hidden():
    shape = (2, 2, 1)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), _init(shape))
    u, log_q = _apply(shape)(params, _image(3, shape), _keys(3))
    assert np.all(np.isnan(u))
    assert np.all(np.isnan(log_q))


@functools.cache
def _gradient(shape):
    """Of a bound's two terms, one through u and one through log q."""

    def loss(params):
        u, log_q = _flow(shape).apply(params, _image(16, shape), _keys(16))
        return jnp.mean(jnp.sum(jnp.sin(3 * u), axis=(1, 2, 3)) + log_q)

    return jax.jit(jax.grad(loss))


def test_every_parameter_has_a_finite_gradient():
    shape = (4, 4, 2)
    for path, leaf in jax.tree_util.tree_flatten_with_path(_gradient(shape)(_moved(shape)))[0]:
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


def test_a_sample_does_not_see_its_batch():
    shape = (4, 4, 2)
    image, keys = _image(3, shape), _keys(3)
    u, log_q = _apply(shape)(_moved(shape), image, keys)
    other_image, other_keys = image.at[1:].multiply(-0.5), jnp.concatenate([keys[:1], _keys(2, seed=9)])
    other_u, other_log_q = _apply(shape)(_moved(shape), other_image, other_keys)
    np.testing.assert_allclose(other_u[0], u[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(other_log_q[0], log_q[0], rtol=0, atol=1e-5)
    assert np.abs(other_u[1:] - u[1:]).max() > 1e-2
    alone, _ = _apply(shape)(_moved(shape), image[:1], keys[:1])
    np.testing.assert_allclose(alone[0], u[0], rtol=0, atol=1e-6)


def test_the_image_matters():
    shape = (4, 4, 2)
    u, _ = _apply(shape)(_moved(shape), _image(3, shape), _keys(3))
    other, _ = _apply(shape)(_moved(shape), -_image(3, shape), _keys(3))
    assert np.all(np.abs(np.asarray(u - other)).max(axis=(1, 2, 3)) > 1e-2)


# --- what it learns ------------------------------------------------------------------------------------------------


def _log_target(u, image):
    """Two known densities on (0, 1)², by the sign of the image.

    Positive: a product of Beta(2, 2). Negative: both values near 0 or both near 1, ½ Π 3 (1 − u)² + ½ Π 3 u².
    """
    one, two = u[:, 0, 0, 0], u[:, 0, 1, 0]
    product = math.log(36) + jnp.log(one) + jnp.log1p(-one) + jnp.log(two) + jnp.log1p(-two)
    corners = jnp.log(4.5 * ((one * two) ** 2 + ((1 - one) * (1 - two)) ** 2))
    return jnp.where(image[:, 0, 0, 0] > 0, product, corners)


def test_it_learns_a_known_density_given_the_image():
    """E_q[log q − log p] is the KL divergence from a known p, and so 0 only where q = p."""
    shape, batch = (1, 2, 1), 256
    flow = Dequantiser(FlowDequantiser(channels=16, blocks=1, couplings=4, components=4), shape)
    image = jnp.broadcast_to(jnp.where(jnp.arange(batch) % 2 == 0, 0.5, -0.5)[:, None, None, None], (batch, *shape))
    steps = 400
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def divergence(params, key):
        keys = rng.for_samples(key, jnp.arange(batch))
        u, log_q = flow.apply(params, image, keys)
        return log_q - _log_target(u, image)

    def step(carry, number):
        params, state = carry
        key = rng.at_step(jax.random.key(5), number)
        gradient = jax.grad(lambda params: jnp.mean(divergence(params, key)))(params)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias correction takes a float to the power of an integer
            updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(flow.init)(jax.random.key(0))
    start = params, optimiser.init(params)
    train = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps))[0][0])
    measure = jax.jit(
        lambda params: jax.lax.map(lambda n: divergence(params, rng.at_step(jax.random.key(6), n)), jnp.arange(40))
    )
    before, after = (np.asarray(measure(p), np.float64).reshape(-1, 2) / 2 for p in (params, train(start)))
    error = after.std(axis=0) / np.sqrt(len(after))
    # Uniform draws: 2 − log 6 = 0.208 nats a value from the first, as much or more from the second.
    np.testing.assert_allclose(before.mean(axis=0)[0], 2 - math.log(6), rtol=0, atol=0.02)
    assert np.all(before.mean(axis=0) > 0.15)
    assert np.all(after.mean(axis=0) < 0.02)
    assert np.all(after.mean(axis=0) > -5 * error)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"couplings": 1}, "couplings must be from 2"),
        ({"couplings": 17}, "to 16, not 17"),
        ({"components": 0}, "components"),
        ({"channels": 0, "components": 0}, "channels.*; components"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FlowDequantiser(**settings)


def test_wrong_shapes_are_refused():
    flow, params, shape = _flow((2, 2, 1)), _init((2, 2, 1)), (2, 2, 1)
    for wrong in [(4, 4), (3,), (0, 2, 1)]:
        with pytest.raises(UserError, match=r"\(height, width, channels\)"):
            Dequantiser(SMALL, wrong)
    with pytest.raises(UserError, match=r"\(batch, 2, 2, 1\)"):
        flow.apply(params, _image(3, (2, 2, 3)), _keys(3))
    with pytest.raises(UserError, match="one key a sample"):
        flow.apply(params, _image(3, shape), _keys(2))
    with pytest.raises(UserError, match="one key a sample"):
        flow.apply(params, _image(1, shape), jax.random.key(0))
    with pytest.raises(UserError, match="noise alike"):
        flow.transport(params, _image(3, shape), jnp.zeros((2, *shape)))


def test_settings_are_hashable_and_frozen():
    assert hash(FlowDequantiser()) == hash(FlowDequantiser(channels=32, blocks=2, couplings=4, components=4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        FlowDequantiser().channels = 3  # type: ignore[misc]
