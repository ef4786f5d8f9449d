"""One battery over every weighting and process: each is its paper's, in the paper's own quantity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.losses import WEIGHTINGS, Denoising
from score_sde.sde import PROCESSES, Options, RectifiedFlow
from tests import levels

NAMES = sorted(PROCESSES)
battery = pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))


def test_every_weighting_is_tested():
    assert set(levels.PAPERS) == set(WEIGHTINGS)


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_one_quantity_are_errors_of_another(name):
    """What the table of papers below rests on: two networks' ε̂ and D at one x_t, by the conversions of a Denoiser."""
    sde = levels.process(name)
    t = np.linspace(sde.t_min, sde.T, 9)
    at = levels.at(sde, t)
    with jax.enable_x64(True):
        x_t, time = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3))), jnp.asarray(t)
        error = {}
        for prediction in levels.OF_EPSILON:
            one, two = (
                Denoiser(sde=sde, function=lambda x, t, c, k=k: k * jnp.sin(x), prediction="epsilon").predict(
                    prediction, x_t, time
                )
                for k in (1.0, 2.0)
            )
            error[prediction] = np.asarray(jnp.sum((one - two) ** 2, axis=1))
    for prediction, factor in levels.OF_EPSILON.items():
        np.testing.assert_allclose(error[prediction], error["epsilon"] * factor(at), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_its_papers(name):
    sde = levels.process(name)
    at = levels.nodes(sde)
    with jax.enable_x64(True):
        weights = {key: cls(**levels.SETTINGS.get(key, {})) for key, cls in WEIGHTINGS.items()}
        ours = jax.jit(lambda t: {key: weight(sde, t) for key, weight in weights.items()})(jnp.asarray(at.t))
    for key, values in ours.items():
        # float64; where σ is tiny, 1/σ² has lost half the digits.
        of_epsilon = np.asarray(values) * levels.OF_EPSILON[WEIGHTINGS[key].of](at)
        np.testing.assert_allclose(of_epsilon, levels.paper_weight(key, at, sde.T - sde.t_min), rtol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_vlb_is_the_bounds_diffusion_term(name):
    """E over uniform t of ½ (T − t_min) g²/σ² v is ½ ∫ v dlog_snr, here by another quadrature, along log_snr."""
    sde = levels.process(name)
    at = levels.nodes(sde)
    ends = levels.at(sde, np.asarray([sde.t_min, sde.T]))
    positions, weights = np.polynomial.legendre.leggauss(200)
    high, low = np.log(ends.snr)
    snr = np.exp(low + (high - low) * (positions + 1) / 2)
    expected = 0.5 * (high - low) / 2 * weights @ (snr * levels.STD**2 / (snr * levels.STD**2 + 1))
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(lambda t: WEIGHTINGS["vlb"]()(sde, t))(jnp.asarray(at.t)))
    # The schedule of ddpm has a jump in its higher derivatives at each of its 1000 steps.
    np.testing.assert_allclose(at.weights @ (ours * at.error), expected, rtol=1e-6)


@battery
def test_finite_in_float32_at_both_ends(weighting):
    for name in NAMES:
        sde = PROCESSES[name]()
        values = WEIGHTINGS[weighting]()(sde, jnp.asarray([sde.t_min, sde.T], jnp.float32))
        assert values.dtype == jnp.float32
        assert np.all(np.isfinite(values)), name
        assert np.all(np.asarray(values) > 0), name


@battery
def test_a_process_that_ends_in_noise(weighting):
    """Refused where the weight is infinite at T, finite where it is not refused."""
    sde = Options(zero_terminal_snr=True).apply(PROCESSES["vp"]())
    end = WEIGHTINGS[weighting]()(sde, jnp.asarray([sde.T], jnp.float32))
    infinite = weighting in ("likelihood", "vlb", "sigmoid")
    assert bool(np.isfinite(end[0])) != infinite
    if infinite:
        with pytest.raises(UserError, match=f"'{weighting}' is infinite at T"):
            WEIGHTINGS[weighting]().check(sde)
    else:
        WEIGHTINGS[weighting]().check(sde)
    WEIGHTINGS[weighting]().check(PROCESSES["vp"]())


@pytest.mark.parametrize(
    ("weighting", "settings"),
    [
        ("edm", {"sigma_data": 0.0}),
        ("min_snr", {"gamma": 0.0}),
        ("soft_min_snr", {"gamma": -1.0}),
        ("p2", {"gamma": -0.1}),
        ("p2", {"k": 0.0}),
    ],
)
def test_bad_settings_are_refused(weighting, settings):
    with pytest.raises(UserError, match=rf"{next(iter(settings))} must be .* not"):
        WEIGHTINGS[weighting](**settings)


@pytest.mark.parametrize("weighting", ["v", "velocity", "edm"])
def test_the_network_is_trained_where_nothing_of_the_data_is_left(weighting):
    """At T of a flow x_T = ε, and the best D is the data's mean: the loss at D = 0 is E P², P of the data alone.

    v = −x_0 and the velocity ε − x_0 both err by |x_0|²; EDM's weight makes it |x_0|²/σ_d².
    """
    sde = RectifiedFlow(T=1.0)
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    denoiser = Denoiser(sde=sde, function=lambda x, t, condition: jnp.zeros_like(x), prediction="x_0")
    keys, t = rng.for_samples(rng.stream(0, "end"), jnp.arange(8)), jnp.ones(8)
    chosen = WEIGHTINGS[weighting]()
    chosen.check(sde)
    loss = Denoising()(denoiser, chosen, x_0, None, keys, t, t).total
    expected = np.mean(np.asarray(x_0) ** 2, axis=1) / (0.25 if weighting == "edm" else 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
