"""Predictions and their conversions, against known pairs (x_0, ε); parameterisations against the EDM paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.denoiser import INPUT_SCALES, NOISE_CONDITIONS, PREDICTIONS, Denoiser, Parameterisation
from score_sde.errors import UserError
from score_sde.sde import PROCESSES
from tests import oracles

NAMES = sorted(PROCESSES)
process = pytest.mark.parametrize("sde", [PROCESSES[name]() for name in NAMES], ids=NAMES)
SIGMA_DATA = 0.6
BATCH, SHAPE = 16, (2, 3)


def _pairs(sde):
    """Times over [t_min, T], x_0 and ε, float64."""
    generator = np.random.default_rng(0)
    t = np.concatenate([np.geomspace(max(sde.t_min, 1e-5), 0.1, BATCH // 2), np.linspace(0.15, sde.T, BATCH // 2)])
    return t, generator.normal(size=(BATCH, *SHAPE)), generator.normal(size=(BATCH, *SHAPE))


def _truth(sde, t, x_0, epsilon):
    """Every prediction from its definition in the papers, and x_t, in float64 by NumPy."""
    column = lambda name: np.asarray(getattr(sde, name)(jnp.asarray(t)))[:, None, None]
    alpha, sigma = column("alpha"), column("sigma")
    x_t = alpha * x_0 + sigma * epsilon
    # EDM's F, from D = c_skip x + c_out F at the level σ̄ for the state in variance-exploding coordinates (its table 1).
    sigma_bar, state = sigma / alpha, x_t / alpha
    c_skip = SIGMA_DATA**2 / (sigma_bar**2 + SIGMA_DATA**2)
    c_out = sigma_bar * SIGMA_DATA / np.sqrt(sigma_bar**2 + SIGMA_DATA**2)
    return x_t, {
        "x_0": x_0,
        "epsilon": epsilon,
        "v": alpha * epsilon - sigma * x_0,
        "score": -epsilon / sigma,
        "velocity": column("alpha_derivative") * x_0 + column("sigma_derivative") * epsilon,
        "edm": (x_0 - c_skip * state) / c_out,
    }


@process
def test_every_prediction_converts_to_every_other(sde):
    """From the exact value of one to the exact value of the other, for all pairs; and so there and back too."""
    with jax.enable_x64(True):
        t, x_0, epsilon = _pairs(sde)
        x_t, truth = _truth(sde, t, x_0, epsilon)
        assert set(truth) == set(PREDICTIONS)
        denoiser = Denoiser(sde=sde, function=lambda x, t, condition: x, sigma_data=SIGMA_DATA)
        pairs = list(itertools.product(PREDICTIONS, repeat=2))
        convert = jax.jit(
            lambda values, x_t, t: {
                (source, target): denoiser.convert(values[source], source, target, x_t, t) for source, target in pairs
            }
        )
        converted = jax.tree.map(
            np.asarray, convert(jax.tree.map(jnp.asarray, truth), jnp.asarray(x_t), jnp.asarray(t))
        )
        alpha, sigma = (np.asarray(c(jnp.asarray(t)))[:, None, None] for c in (sde.alpha, sde.sigma))
    for (source, target), value in converted.items():
        # What is known is (x_t, source): x_0 from ε is a difference of terms σ/α larger, ε from x_0 one of α/σ.
        condition = 1 + sigma / alpha + alpha / sigma
        error = np.abs(value - truth[target]) / (np.abs(truth[target]).max(axis=(1, 2), keepdims=True) * condition)
        assert error.max() < 1e-12, (source, target)


@process
def test_score_is_the_gradient_of_the_log_density(sde):
    """For an exact posterior mean, (α D − x)/σ² is ∇ log p_t (Tweedie)."""
    oracle = oracles.mixture([0.3, 0.7], [-0.8, 0.5], [0.2, 0.4], (2,))
    denoiser = oracle.denoiser(sde)
    with jax.enable_x64(True):
        t = jnp.linspace(sde.t_min, sde.T, 8)
        x_t = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2))) * (sde.alpha(t) + sde.sigma(t))[:, None]
        evaluate = lambda x, t: (
            denoiser.score(x, t),
            jax.grad(lambda x: oracle.log_prob(sde, x, t).sum())(x),
            denoiser(x, t),
            denoiser.epsilon(x, t),
            denoiser.velocity(x, t),
        )
        score, gradient, mean, epsilon, velocity = (np.asarray(value) for value in jax.jit(evaluate)(x_t, t))
        alpha, sigma, d_alpha, d_sigma = (
            np.asarray(c(t))[:, None] for c in (sde.alpha, sde.sigma, sde.alpha_derivative, sde.sigma_derivative)
        )
        x_t = np.asarray(x_t)
    # D is given, and α D − x is a difference of terms of size |x|: float64 leaves 1e-15 |x|/σ of ε, and 1/σ of that of
    # the score; a factor 10 for the operations in between.
    rounding = 1e-14 * (np.abs(x_t) + alpha) / sigma
    assert np.all(np.abs(epsilon - -sigma * gradient) < rounding + 1e-13)
    assert np.all(np.abs(score - gradient) < (rounding + 1e-13) / sigma)
    assert np.all(np.abs(sigma * epsilon - (x_t - alpha * mean)) < sigma * rounding)
    assert np.all(np.abs(velocity - (d_alpha * mean + d_sigma * epsilon)) < np.abs(d_sigma) * rounding + 1e-13)


@process
def test_the_velocity_is_the_probability_flow_ode(sde):
    """dα/dt D + dσ/dt ε̂ is f x − ½ g² score: two forms of one velocity."""
    denoiser = oracles.gaussian(0.3, 0.5, (2,)).denoiser(sde)
    with jax.enable_x64(True):
        t = jnp.linspace(sde.t_min, sde.T, 8)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)))
        velocity, drift, half = jax.jit(
            lambda x, t: (
                denoiser.velocity(x, t),
                sde.drift(x, t),
                0.5 * sde.diffusion(x, t) ** 2 * denoiser.score(x, t),
            )
        )(x, t)
        scale = np.abs(drift) + np.abs(half)
        assert (
            np.max(np.abs(velocity - (drift - half)) / scale) < 1e-9
        )  # D is formed with a loss of α/σ digits at t_min


@process
def test_edm_parameterisation_is_the_papers(sde):
    """Karras et al. 2022, table 1 and eq. 7: D(x; σ) = c_skip x + c_out F(c_in x; c_noise), for the state x_t/α_t.

    c_skip = σ_d²/(σ²+σ_d²), c_out = σ σ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), at σ = σ̄_t; α_t = 1 for VE.
    """
    parameterisation = Parameterisation(
        prediction="edm", input_scale="unit_variance", noise_condition="log_sigma", sigma_data=SIGMA_DATA
    )

    def network(params, x, noise_condition, condition, *, train, rng):
        assert not train
        assert rng is None
        return params["gain"] * jnp.tanh(x) + noise_condition[:, None] + condition["shift"]

    params = {"gain": 1.7}
    with jax.enable_x64(True):
        t, x_0, epsilon = _pairs(sde)
        x_t = (_truth(sde, t, x_0, epsilon)[0])[:, 0]
        shift = np.linspace(-1, 1, BATCH)[:, None]
        denoised = np.asarray(
            parameterisation.denoiser(sde, network, params)(
                jnp.asarray(x_t), jnp.asarray(t), {"shift": jnp.asarray(shift)}
            )
        )
        alpha, sigma = (np.asarray(c(jnp.asarray(t)))[:, None] for c in (sde.alpha, sde.sigma))
    level, state = sigma / alpha, x_t / alpha
    c_skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
    c_out = level * SIGMA_DATA / np.sqrt(level**2 + SIGMA_DATA**2)
    c_in = 1 / np.sqrt(level**2 + SIGMA_DATA**2)
    expected = c_skip * state + c_out * (params["gain"] * np.tanh(c_in * state) + np.log(level) + shift)
    # D is computed from F with coefficients of size up to max(1, σ̄); a difference of terms of that size.
    np.testing.assert_allclose(denoised, expected, rtol=1e-10, atol=1e-11 * level.max())


@process
def test_unit_variance_input(sde):
    """For data of standard deviation σ_d the network sees an input of variance 1 at every t."""
    with jax.enable_x64(True):
        t = jnp.linspace(sde.t_min, sde.T, 9)
        marginal = oracles.gaussian(0.0, SIGMA_DATA, (1,))
        scale = np.asarray(INPUT_SCALES["unit_variance"](sde, t, SIGMA_DATA))
        variance = [marginal.marginal(sde, float(time)).variance()[0] for time in t]
    np.testing.assert_allclose(scale**2 * variance, 1, rtol=1e-12)


@process
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_a_network_that_is_right_denoises_exactly(sde, prediction):
    """A network that outputs the exact value of a prediction gives the exact D, through every parameterisation."""
    oracle = oracles.gaussian(0.2, 0.5, (3,))
    exact = oracle.denoiser(sde)
    parameterisation = Parameterisation(prediction=prediction, sigma_data=SIGMA_DATA)
    with jax.enable_x64(True):
        t = jnp.linspace(sde.t_min + 0.01, sde.T, 5)
        x = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))
        reference = Denoiser(sde=sde, function=exact.function, sigma_data=SIGMA_DATA)

        def network(params, x, noise_condition, condition, *, train, rng):
            return reference.predict(prediction, x, noise_condition * sde.T / 999)

        denoiser = parameterisation.denoiser(sde, network, {})
        denoised, expected = jax.jit(lambda x, t: (denoiser(x, t), exact(x, t)))(x, t)
        # x_0 from ε loses σ/α ≤ 1.5e2 digits' worth at T for VP, the other way α/σ at t_min.
        np.testing.assert_allclose(denoised, expected, rtol=1e-10, atol=1e-10)


def test_the_network_is_told_what_the_parameterisation_says():
    """train, rng and parameters reach the network; the label is 999 t/T or log σ̄, the input is scaled or not."""
    sde = PROCESSES["ve"]()
    t, x = jnp.asarray([0.25, 0.75]), jnp.ones((2, 3))
    seen = {}

    def network(params, x, noise_condition, condition, *, train, rng):
        seen.update(params=params, x=x, label=noise_condition, condition=condition, train=train, rng=rng)
        return x

    key = jax.random.key(0)
    Parameterisation(noise_condition="time").denoiser(sde, network, 5, train=True, rng=key)(x, t, "c")
    assert (seen["params"], seen["condition"], seen["train"], seen["rng"]) == (5, "c", True, key)
    np.testing.assert_allclose(seen["label"], [249.75, 749.25], rtol=1e-6)
    np.testing.assert_array_equal(seen["x"], x)
    Parameterisation(noise_condition="log_sigma", input_scale="unit_variance").denoiser(sde, network, 5)(x, t)
    level = 0.01 * 5000 ** np.array([0.25, 0.75])
    np.testing.assert_allclose(seen["label"], np.log(level), rtol=1e-6)
    np.testing.assert_allclose(seen["x"][:, 0], 1 / np.sqrt(level**2 + 0.25), rtol=1e-6)
    assert set(NOISE_CONDITIONS) == {"time", "log_sigma"}  # both rows are checked above


@pytest.mark.parametrize("field", ["prediction", "noise_condition", "input_scale"])
def test_unknown_names_are_refused(field):
    with pytest.raises(UserError, match=f"unknown {field} 'epsilom'"):
        Parameterisation(**{field: "epsilom"})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_sigma_data_is_refused(value):
    with pytest.raises(UserError, match="sigma_data"):
        Parameterisation(sigma_data=value)
