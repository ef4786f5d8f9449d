"""Predictions and their conversions, against known pairs (x_0, ε); parameterisations against the EDM paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracles
from score_sde.denoiser import INPUT_SCALES, NOISE_CONDITIONS, PREDICTIONS, Denoiser, Parameterisation
from score_sde.errors import UserError
from score_sde.sde import DDPM, PROCESSES, SMLD, Options, RectifiedFlow
from tests.tables import ENDING, PLAIN, over, plain_process

process = plain_process
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
        "scaled_score": -epsilon,
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
    """train, rng and parameters reach the network; the input is scaled or not."""
    sde = PROCESSES["ve"]()
    t, x = jnp.asarray([0.25, 0.75]), jnp.ones((2, 3))
    seen = {}

    def network(params, x, noise_condition, condition, *, train, rng):
        seen.update(params=params, x=x, label=noise_condition, condition=condition, train=train, rng=rng)
        return x

    key = jax.random.key(0)
    Parameterisation(noise_condition="time").denoiser(sde, network, 5, train=True, rng=key)(x, t, "c")
    assert (seen["params"], seen["condition"], seen["train"], seen["rng"]) == (5, "c", True, key)
    np.testing.assert_array_equal(seen["x"], x)
    Parameterisation(input_scale="unit_variance").denoiser(sde, network, 5)(x, t)
    level = 0.01 * 5000 ** np.array([0.25, 0.75])
    np.testing.assert_allclose(seen["x"][:, 0], 1 / np.sqrt(level**2 + 0.25), rtol=1e-6)


# What each row of NOISE_CONDITIONS says at t = ¼ and ¾, by the paper's formula.
QUARTERS = np.array([0.25, 0.75])
LEVEL = 0.01 * 5000**QUARTERS  # σ̄ of VE and SMLD
LABELS = {
    "time": (PLAIN["ve"], 999 * QUARTERS),
    "unit_time": (PROCESSES["cosine"](T=0.8), QUARTERS / 0.8),
    "sigma": (PLAIN["ve"], LEVEL),
    "log_sigma": (PLAIN["ve"], np.log(LEVEL)),
    "log_half_sigma": (PLAIN["ve"], np.log(LEVEL / 2)),
    "edm": (PLAIN["edm"], np.log(QUARTERS) / 4),
    "log_snr": (PLAIN["rectified_flow"], 2 * np.log((1 - QUARTERS) / QUARTERS)),
    "step": (DDPM(steps=100, t_min=0.01), [24, 74]),
}


def test_every_noise_condition_is_tested():
    assert set(LABELS) == set(NOISE_CONDITIONS)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_noise_conditions_are_the_documented_ones(name):
    sde, expected = LABELS[name]
    label = NOISE_CONDITIONS[name](sde, jnp.asarray(QUARTERS, jnp.float32))
    np.testing.assert_allclose(label, expected, rtol=1e-5)


def test_steps_of_smld_are_numbered_from_the_largest():
    label = NOISE_CONDITIONS["step"](SMLD(scales=101), jnp.asarray([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(label, [100, 75, 0], rtol=1e-6)


@pytest.mark.parametrize("field", ["prediction", "noise_condition", "input_scale"])
def test_unknown_names_are_refused(field):
    with pytest.raises(UserError, match=f"unknown {field} 'epsilom'"):
        Parameterisation(**{field: "epsilom"})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_sigma_data_is_refused(value):
    with pytest.raises(UserError, match="sigma_data"):
        Parameterisation(sigma_data=value)


# --- pure noise ----------------------------------------------------------------------------------------------------


@over(ENDING)
def test_predictions_where_nothing_of_the_data_is_left(sde):
    """At T, x_T = σ ε: x_0, v, velocity and edm still say what D is, and the velocity dα/dt D + dσ/dt ε is finite."""
    with jax.enable_x64(True):
        t = jnp.asarray([sde.T], jnp.float64)
        x_0, epsilon = jnp.asarray([[0.3, -0.4]]), jnp.asarray([[1.2, -0.7]])
        sigma, d_alpha, d_sigma = (c(t)[:, None] for c in (sde.sigma, sde.alpha_derivative, sde.sigma_derivative))
        # a and b of the module's table at α = 0; of EDM's F, σ/(σ_d ρ) is 1/σ_d and −α σ_d/ρ is 0.
        values = {
            "x_0": x_0,
            "v": -sigma * x_0,
            "velocity": d_alpha * x_0 + d_sigma * epsilon,
            "edm": x_0 / SIGMA_DATA,
        }
        denoiser = Denoiser(sde=sde, function=lambda x, t, condition: x, sigma_data=SIGMA_DATA)
        for source, target in itertools.product(values, repeat=2):
            converted = denoiser.convert(values[source], source, target, sigma * epsilon, t)
            np.testing.assert_allclose(converted, values[target], rtol=1e-10, err_msg=f"{source} to {target}")
        for source, value in values.items():
            converted = denoiser.convert(value, source, "epsilon", sigma * epsilon, t)
            np.testing.assert_allclose(converted, epsilon, rtol=1e-10, err_msg=source)


@pytest.mark.parametrize("prediction", ["x_0", "v", "velocity", "edm"])
def test_the_velocity_of_a_rectified_flow_is_finite_at_one(prediction):
    """In float32, from a network's output; for a prediction of the velocity it is the output itself."""
    parameterisation = Parameterisation(prediction=prediction)
    sde = RectifiedFlow(T=1.0)
    parameterisation.check(sde)
    network = lambda params, x, noise_condition, condition, *, train, rng: 0.5 * x
    x = jnp.asarray([[0.8, -1.5]])
    velocity = parameterisation.denoiser(sde, network, {}).velocity(x, jnp.ones(1))
    # x_0 = F, −F, x_1 − F, σ_d F in turn, at x_1 = ε; velocity ε − x_0.
    factor = {"x_0": 0.5, "v": 1.5, "velocity": 0.5, "edm": 1 - 0.25}[prediction]
    np.testing.assert_allclose(velocity, factor * x, rtol=1e-6)


# --- another process than the training's ---------------------------------------------------------------------------

# Processes whose noise levels lie within those of vp, 1e-3 … 152.
OTHERS = {
    "edm": PROCESSES["edm"](t_min=0.01, T=80.0),
    "ve": PLAIN["ve"],
    "rectified_flow": PROCESSES["rectified_flow"](t_min=0.01, T=0.99),
    "cosine": PROCESSES["cosine"](t_min=0.01, T=0.99),
    "vp, shifted": Options(shift=2.0).apply(PROCESSES["vp"](t_min=0.01, T=0.8)),
}


@pytest.mark.parametrize("source", ["x_0", "epsilon", "v", "velocity", "edm"])
@over(OTHERS)
def test_a_denoiser_serves_another_process(sde, source):
    """Exact for a mixture on vp, as any prediction: then every prediction for the other process is exact too."""
    trained, oracle = PLAIN["vp"], oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.15, 0.25], (2,))
    exact = oracle.denoiser(trained)
    function = lambda x_t, t, condition: exact.convert(exact.function(x_t, t, condition), "x_0", source, x_t, t)
    denoiser = Denoiser(sde=trained, function=function, prediction=source, sigma_data=1.0).on(sde)
    assert (denoiser.sde, denoiser.trained_on) == (sde, trained)
    expected = oracle.denoiser(sde)
    with jax.enable_x64(True):
        t = sde.time_of_log_snr(jnp.linspace(sde.log_snr(jnp.asarray(sde.t_min)), sde.log_snr(jnp.asarray(sde.T)), 7))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2))) * (sde.alpha(t) + sde.sigma(t))[:, None]
        both = lambda x, t: [[d.predict(name, x, t) for name in PREDICTIONS] for d in (denoiser, expected)]
        served, wanted = jax.jit(both)(x, t)
        size = 1 + jnp.abs(x)
        slope = 1 + jnp.abs(sde.alpha_derivative(t)) + jnp.abs(sde.sigma_derivative(t))
        levels = {"score": 1 / sde.sigma(t), "velocity": slope}
    for name, one, other in zip(PREDICTIONS, served, wanted, strict=True):
        # Relative to the state and to the prediction's own unit.
        unit = np.asarray(size) * np.asarray(levels.get(name, np.ones(7)))[:, None]
        assert np.max(np.abs(one - other) / unit) < 1e-10, name


def test_on_another_process_and_back():
    """Twice moved is moved once, and back is where it was."""
    denoiser = oracles.gaussian(0.2, 0.5, (2,)).denoiser(PLAIN["vp"])
    assert denoiser.on(OTHERS["edm"]).on(OTHERS["ve"]) == denoiser.on(OTHERS["ve"])
    assert denoiser.on(OTHERS["edm"]).on(PLAIN["vp"]) == denoiser
    assert denoiser.on(PLAIN["vp"]) == denoiser


@pytest.mark.parametrize(
    "sde",
    [PROCESSES["edm"](t_min=1e-4), PROCESSES["edm"](T=200.0), RectifiedFlow(T=1.0), RectifiedFlow(t_min=1e-3)],
    ids=["less noise", "more noise", "pure noise", "less, on the line"],
)
def test_noise_levels_beyond_the_trained_ones_are_refused(sde):
    denoiser = oracles.gaussian(0.2, 0.5, (2,)).denoiser(PLAIN["vp"])
    with pytest.raises(UserError, match=r"noise levels sigma/alpha.* must lie within those of the training's process"):
        denoiser.on(sde)


# --- what goes together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
def test_noise_cannot_be_predicted_from_pure_noise(prediction):
    Parameterisation(prediction=prediction).check(RectifiedFlow())
    with pytest.raises(UserError, match=f"prediction '{prediction}' says nothing of the data at T"):
        Parameterisation(prediction=prediction).check(RectifiedFlow(T=1.0))


@pytest.mark.parametrize("noise_condition", ["sigma", "log_sigma", "edm", "log_snr"])
def test_labels_that_are_infinite_are_refused(noise_condition):
    parameterisation = Parameterisation(prediction="v", noise_condition=noise_condition)
    parameterisation.check(PLAIN["vp"])
    with pytest.raises(UserError, match=f"noise_condition '{noise_condition}' is infinite at T"):
        parameterisation.check(ENDING["vp-zero"])


def test_steps_need_a_process_with_steps():
    for name, sde in PLAIN.items():
        if name in ("ddpm", "smld"):
            Parameterisation(noise_condition="step").check(sde)
        else:
            with pytest.raises(UserError, match="needs a process with steps of its own"):
                Parameterisation(noise_condition="step").check(sde)
