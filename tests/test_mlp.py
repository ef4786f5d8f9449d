"""The MLP's own: Fourier features of the point, and a function of two dimensions that it must be able to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network
from tests.networks import inputs, moved, network, quick_jit

FEATURES = (("fourier_features", 6), ("feature_scale", 2.0))


def test_fourier_features_are_random_fixed_and_of_their_scale():
    of = Network(NETWORKS["mlp"](fourier_features=200, feature_scale=5.0, width=8, depth=1), (3,))
    known = of.parameters()
    assert [path for path, each in known.items() if not each.trainable] == [("features", "frequency")]
    assert known["input", "kernel"].shape == (3 + 2 * 200, 8)
    frequency = quick_jit(of.init)(jax.random.key(0))["features"]["frequency"]
    assert frequency.shape == (3, 200)
    # The standard deviation of 600 draws: 5 of its standard errors 1/√1200.
    assert abs(float(jnp.std(frequency)) / 5 - 1) < 5 / np.sqrt(1200)


def test_a_whole_period_is_seen_by_the_coordinates_alone():
    """With frequencies of whole numbers, x and x + 1 have the same features but for x itself."""
    of, params, (x, noise) = network("mlp", FEATURES), dict(moved("mlp", FEATURES)), inputs("mlp")
    params["features"] = {"frequency": jnp.round(3 * params["features"]["frequency"])}
    run = quick_jit(lambda params, x: of.apply(params, x, noise, None, train=False, rng=None))
    assert float(jnp.abs(run(params, x + 1.0) - run(params, x)).max()) > 1e-2
    blind = params["input"]["kernel"].at[:2].set(0.0)
    params["input"] = {**params["input"], "kernel": blind}
    np.testing.assert_allclose(run(params, x + 1.0), run(params, x), atol=1e-4)
    assert float(jnp.abs(run(params, x + 0.3) - run(params, x)).max()) > 1e-2


@pytest.mark.parametrize("modulation", ["adaln", "add"])
def test_it_learns_a_function_of_the_point_and_the_noise_level(modulation, jax_rules):
    """y = sin(2 x₁ + c), x₂ cos c to within 5 % of its variance in 400 steps."""
    of = Network(NETWORKS["mlp"](width=32, depth=2, modulation=modulation, fourier_features=8, feature_scale=0.3), (2,))
    keys = jax.random.split(jax.random.key(0), 3)
    x, noise = jax.random.normal(keys[0], (256, 2)), jax.random.uniform(keys[1], (256,), maxval=3.0)
    y = jnp.stack([jnp.sin(2 * x[:, 0] + noise), x[:, 1] * jnp.cos(noise)], axis=1)
    loss = lambda params: jnp.mean((of.apply(params, x, noise, None, train=True, rng=None) - y) ** 2)
    optimiser = optax.adam(5e-3)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    params = of.init(keys[2])
    _, losses = jax.jit(lambda params: jax.lax.scan(step, (params, optimiser.init(params)), length=400))(params)
    assert float(losses[-1]) < 0.05 * float(jnp.var(y))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 7}, "width must be even"),
        ({"depth": 0}, "depth"),
        ({"fourier_features": -1}, "fourier_features"),
        ({"feature_scale": 0.0}, "feature_scale"),
        ({"modulation": "adalm"}, "did you mean 'adaln'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        NETWORKS["mlp"](**settings)


def test_images_are_refused():
    with pytest.raises(UserError, match=r"mlp takes points \(dim,\)"):
        Network(NETWORKS["mlp"](), (8, 8, 3))
