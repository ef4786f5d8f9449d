"""The evidence bound against closed forms and exact likelihoods, and the training of a learned schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import oracles, rng
from score_sde.denoiser import Denoiser
from score_sde.losses import TIMES, Bound, bound_terms, schedule_loss
from score_sde.losses.weightings import VLB
from score_sde.sde import PROCESSES, VDM, Options
from tests import levels

NAMES = sorted(PROCESSES)
DRAWS = 20_000


def _terms(sde, function, x, prediction="epsilon", times="uniform", count=DRAWS):
    """The bound's terms of each of x, in float64 NumPy."""
    denoiser = Denoiser(sde=sde, function=lambda x, t, condition: function(x, t), prediction=prediction)

    def terms(x, keys):
        t, factor = TIMES[times]()(sde, rng.uniform(rng.child(keys, 0)), ())
        return bound_terms(denoiser, x, None, rng.child(keys, 1), t, factor)

    keys = rng.for_samples(rng.stream(0, "bound"), jnp.arange(count))
    return [np.asarray(term, np.float64) for term in jax.jit(terms)(x, keys)]


def _gaussian_data(count=DRAWS):
    keys = rng.for_samples(rng.stream(0, "data"), jnp.arange(count))
    return levels.MEAN + levels.STD * rng.normal(keys, levels.SHAPE)


@pytest.mark.parametrize("name", NAMES)
def test_each_term_is_its_closed_form(name):
    """For Gaussian data and the exact network, and the whole is the entropy and what the bound is known to lose: the KL
    of the law at T from the prior, and of the posterior of x given x_{t_min} from the decoder. Per dimension, with
    signal s² and noise n = σ̄² at t_min, S² = α_T² s² and n_T = σ_T² at T:

        at T      ½ ((S² + α_T² m²)/n_T − log(1 + S²/n_T))
        decoder   KL of variances r = s² n/(s² + n) and n, means apart by (s²/(s² + n) − 1)(y − m), y ~ N(m, s² + n):
                  ½ (r/n + n/(s² + n) − 1 − log(r/n)) = −½ log(s²/(s² + n))
    """
    sde = levels.process(name)
    x = _gaussian_data()
    prior, diffusion, reconstruction = _terms(sde, lambda x, t: levels.exact_epsilon(sde, x, t), x)
    at = levels.nodes(sde)
    ends = levels.at(sde, np.asarray([sde.t_min, sde.T]))
    data, size = np.asarray(x, np.float64), levels.SIZE
    # Of each sample: KL(N(α x, σ²) ‖ N(0, σ²)), E −log N(x; x + σ̄ ε, σ̄²).
    np.testing.assert_allclose(prior, 0.5 * ends.snr[1] * (data**2).sum(axis=(1, 2)), rtol=2e-5)
    np.testing.assert_allclose(reconstruction, 0.5 * size * (np.log(2 * np.pi / ends.snr[0]) + 1), rtol=1e-5)
    expected = 0.5 * size * (sde.T - sde.t_min) * at.weights @ (at.rate * at.error)
    assert levels.close(diffusion, expected)
    signal = levels.STD**2
    entropy = 0.5 * size * (np.log(2 * np.pi * signal) + 1)
    at_end = 0.5 * size * (ends.snr[1] * (signal + levels.MEAN**2) - np.log1p(ends.snr[1] * signal))
    decoder = -0.5 * size * np.log(signal / (signal + 1 / ends.snr[0]))
    assert at_end >= 0
    assert decoder >= 0
    exact = 0.5 * size * ends.snr[1] * (signal + levels.MEAN**2) + expected + reconstruction[0]
    # float32's reconstruction and the quadrature.
    np.testing.assert_allclose(exact, entropy + at_end + decoder, rtol=2e-5)


@pytest.mark.parametrize("name", ["vp", "subvp", "edm", "vdm", "rectified_flow"])
def test_it_bounds_the_likelihood_of_a_mixture_and_is_tight_at_the_exact_denoiser(name):
    sde = PROCESSES[name](**{"edm": {"t_min": 0.01, "T": 80.0}, "vdm": {"features": 8}}.get(name, {"t_min": 1e-3}))
    data = oracles.mixture([0.3, 0.7], [-0.6, 0.5], [0.2, 0.3], (3,))
    generator = np.random.default_rng(0)
    component = generator.choice(2, size=DRAWS, p=data.weights)
    x = data.means[component] + data.stds[component] * generator.normal(size=(DRAWS, 3))
    x = jnp.asarray(x, jnp.float32)
    exact = -np.asarray(data.data_log_prob(x), np.float64)
    of = lambda function: sum(_terms(sde, function, x, "x_0", "importance")) - exact
    tight = of(lambda x, t: data.posterior_mean(sde, x, t))
    # What the bound loses at the ends: at most the prior's term, and as many O(σ̄²/s²) of the decoder as dimensions.
    ends = levels.at(sde, np.asarray([sde.t_min, sde.T]))
    loss = float(np.mean(0.5 * ends.snr[1] * np.sum(np.asarray(x) ** 2, axis=1))) + 3 / ends.snr[0] / 0.2**2
    error = tight.std() / np.sqrt(DRAWS)
    print(f"{name}: bound − NLL {tight.mean():.4f} ± {error:.4f} nats, at most {loss:.4f} lost at the ends")
    assert -5 * error < tight.mean() < loss + 5 * error
    # A denoiser whose ε̂ is wrong by 0.1 everywhere pays ½ ∫ 3 · 0.1² dlog_snr for it.
    wrong = of(lambda x, t: data.posterior_mean(sde, x, t) + 0.1 * sde.sigma_bar(t)[:, None])
    assert levels.close(wrong - tight, 0.5 * 3 * 0.1**2 * np.log(ends.snr[0] / ends.snr[1]))


def test_as_an_objective_it_is_in_nats_a_dimension():
    sde = levels.process("vp")
    denoiser = Denoiser(sde=sde, function=lambda x, t, c: jnp.sin(x), prediction="epsilon")
    x, keys = jnp.linspace(-1, 1, 32).reshape(8, 4), rng.for_samples(rng.stream(0, "a"), jnp.arange(8))
    t, factor = jnp.linspace(0.1, 0.9, 8), jnp.linspace(0.5, 2.0, 8)
    terms = bound_terms(denoiser, x, None, keys, t, factor)
    loss = Bound()(denoiser, VLB(), x, None, keys, t, factor)
    np.testing.assert_allclose(loss.total, sum(terms) / 4, rtol=1e-6)
    np.testing.assert_allclose(loss.at_time, terms.diffusion / factor / 4, rtol=1e-6)


# --- a learned schedule -----------------------------------------------------------------------------------------------


def _error(log_snr):
    """What a network's squared error might be: that of Gaussian data with a bump."""
    signal = jnp.exp(log_snr) * levels.STD**2
    return signal / (1 + signal) * (1 + 0.5 * jnp.exp(-((log_snr - 3) ** 2) / 8))


def _middles(sde, count):
    return sde.t_min + (sde.T - sde.t_min) * (jnp.arange(count, dtype=float) + 0.5) / count


def _loss(sde, t):
    """L at t: the diffusion term's integrand."""
    rate = -jax.jvp(sde.log_snr, (t,), (jnp.ones_like(t),))[1]
    return 0.5 * (sde.T - sde.t_min) * rate * _error(sde.log_snr(t))


@pytest.mark.parametrize("shift", [1.0, 0.5])
def test_the_schedules_gradient_is_that_of_the_second_moment(shift):
    """∇ log E_t L² through everything that depends on the shape, by automatic differentiation of the integral (an even
    grid, float64), and by finite differences of it; against the gradient that takes L as numbers."""
    learned = Options(shift=shift).apply(VDM(features=6))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), levels.bent(VDM(features=6)))
        t = _middles(learned, 20_000)
        bind = lambda shape: learned.bind({**params, "shape": shape})
        moment = lambda shape: jnp.log(jnp.mean(_loss(bind(shape), t) ** 2))
        ours = jax.jit(jax.grad(lambda shape: schedule_loss(bind(shape), t, _loss(bind(shape), t))))(params["shape"])
        by_autodiff = jax.jit(jax.grad(moment))(params["shape"])
        by_difference = jax.tree.map(np.zeros_like, params["shape"])
        of, h = jax.jit(moment), 1e-5
        for name, leaf in params["shape"].items():
            for index in np.ndindex(leaf.shape):
                step = lambda sign, n=name, i=index, v=leaf: of({**params["shape"], n: v.at[i].add(sign * h)})
                by_difference[name] = np.asarray(by_difference[name])
                by_difference[name][index] = (step(1) - step(-1)) / (2 * h)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(by_autodiff))
    assert largest > 1e-3
    for name, leaf in ours.items():
        # The middle rule's error h² of an integral by parts, and h² of the difference.
        np.testing.assert_allclose(leaf, by_autodiff[name], rtol=0, atol=1e-6 * largest, err_msg=name)
        np.testing.assert_allclose(leaf, by_difference[name], rtol=0, atol=1e-6 * largest, err_msg=name)


def test_the_gradient_from_random_times_is_unbiased():
    """Of E L², before the logarithm: the mean over batches of the one from random times, 5 standard errors."""
    sde = VDM(features=3)
    params = levels.bent(sde)
    bind = lambda shape: sde.bind({**params, "shape": shape})

    def gradient(t):
        loss = _loss(bind(params["shape"]), t)
        scale = jnp.mean(loss**2)
        return jax.tree.map(
            lambda leaf: scale * leaf, jax.grad(lambda s: schedule_loss(bind(s), t, loss))(params["shape"])
        )

    def of(t):
        leaves = gradient(t)
        return jnp.concatenate([leaves[name].reshape(-1) for name in sorted(leaves)])

    t = rng.uniform(rng.for_samples(rng.stream(0, "times"), jnp.arange(2000 * 16))).reshape(2000, 16)
    found = np.asarray(jax.jit(jax.vmap(of))(t), np.float64)
    expected = np.asarray(jax.jit(of)(_middles(sde, 100_000)), np.float64)
    assert np.all(np.abs(found.mean(axis=0) - expected) < 5 * found.std(axis=0) / np.sqrt(2000) + 1e-4)


def test_it_has_no_gradient_in_the_loss_or_the_time():
    sde = VDM(features=4).bind(levels.bent(VDM(features=4)))
    t = _middles(sde, 16)
    for argument in (0, 1):
        of = lambda t, loss: schedule_loss(sde, t, loss)
        np.testing.assert_array_equal(jax.grad(of, argnums=argument)(t, jnp.ones(16)), 0)


def test_descending_it_lowers_the_variance_and_keeps_the_mean():
    """From random times alone, with the network's error as given: both variances are printed."""
    sde = VDM(features=32)
    params = levels.bent(sde)
    bind = lambda shape: sde.bind({**params, "shape": shape})

    @jax.jit
    def step(shape, momentum, number):
        keys = rng.for_samples(rng.at_step(rng.stream(0, "descent"), number), jnp.arange(128))
        t = rng.uniform(keys)
        gradient = jax.grad(lambda shape: schedule_loss(bind(shape), t, _loss(bind(shape), t)))(shape)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda value, m: value - 0.05 * m, shape, momentum), momentum

    @jax.jit
    def moments(shape):
        loss = _loss(bind(shape), _middles(sde, 50_000))
        return jnp.mean(loss), jnp.var(loss)

    shape, momentum = params["shape"], jax.tree.map(jnp.zeros_like, params["shape"])
    mean, before = (float(value) for value in moments(shape))
    for number in range(400):
        shape, momentum = step(shape, momentum, number)
    same, after = (float(value) for value in moments(shape))
    linear = float(moments(sde.init()["shape"])[1])
    text = f"variance of the bound's estimate: {before:.4g} bent, {linear:.4g} linear, {after:.4g} learned"
    print(text, f"mean {mean:.5f} and {same:.5f}")
    assert same == pytest.approx(mean, rel=1e-4)  # float32 sums of 50 000
    assert after < 0.2 * before, text
    assert after < linear, text
