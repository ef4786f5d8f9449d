"""The variance of an estimate of the likelihood objective, by how its times are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.losses import OBJECTIVES, TIMES, WEIGHTINGS, Times
from score_sde.sde import PROCESSES
from tests import levels

NAMES = sorted(PROCESSES)

BATCHES, BATCH = 1500, 32
KEPT = "kept from the ends"
DOMAINS = {KEPT: levels.process, "as shipped": lambda name: PROCESSES[name]()}
LINEAR = ("ve", "smld")  # log_snr in t: importance sampling is uniform


@functools.cache
def _estimates(name, domain):
    """Losses `(BATCHES, BATCH)`, weighted for the likelihood, at the exact network of Gaussian data, by how times are
    drawn."""
    sde = DOMAINS[domain](name)
    denoiser = Denoiser(sde=sde, function=lambda x, t, condition: levels.exact_epsilon(sde, x, t), prediction="epsilon")
    schemes = {
        "uniform": Times(TIMES["uniform"]()),
        "importance": Times(TIMES["importance"]()),
    }
    if domain == KEPT:
        schemes["low_discrepancy"] = Times(TIMES["uniform"](), low_discrepancy=True)

    def losses(keys):
        x_0 = levels.MEAN + levels.STD * rng.normal(rng.child(keys, 2), levels.SHAPE)
        result = {}
        for scheme, times in schemes.items():
            t, factor = times.draw(sde, rng.child(keys, 0), ())
            vlb = WEIGHTINGS["vlb"]()
            result[scheme] = OBJECTIVES["denoising"]()(denoiser, vlb, x_0, None, rng.child(keys, 1), t, factor).total
        return result

    keys = rng.for_samples(rng.stream(0, "variance"), jnp.arange(BATCHES * BATCH)).reshape(BATCHES, BATCH)
    return {key: np.asarray(value, np.float64) for key, value in jax.jit(jax.vmap(losses))(keys).items()}


def _moments(name, scheme, domain):
    """Mean and variance of one estimate, in closed form: E L = E_t w v, E L² = (1 + 2/D) E_t w² v², over the scheme's
    own times and with its factor in w."""
    sde = DOMAINS[domain](name)
    at = levels.nodes(sde)
    weight = 0.5 * (sde.T - sde.t_min) * at.rate
    mean = at.weights @ (weight * at.error)
    change = at.weights @ at.rate if scheme == "importance" else at.rate  # ∫ p (w/p)² = ∫ w · (w/p)
    square = 0.5 * (sde.T - sde.t_min) * at.weights @ (weight * change * at.error**2) * (1 + 2 / levels.SIZE)
    return mean, square - mean**2


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", NAMES)
def test_importance_sampling_has_the_same_mean_and_less_variance(name, domain):
    """Of the likelihood objective; both are printed. The variances are those of the closed form, too."""
    estimates, found, exact = _estimates(name, domain), {}, {}
    for scheme in ("uniform", "importance"):
        mean, exact[scheme] = _moments(name, scheme, domain)
        values = estimates[scheme].reshape(-1)
        # The standard error is the closed form's: down to t_min = 1e-5, a few of the draws make most of the sample's.
        assert abs(values.mean() - mean) < 5 * np.sqrt(exact[scheme] / values.size)
        assert levels.close((values - mean) ** 2, exact[scheme])
        found[scheme] = values.var()
        print(f"{name} {domain}, {scheme}: mean {values.mean():.4g}, variance {found[scheme]:.4g}; exactly", end=" ")
        print(f"{mean:.4g}, {exact[scheme]:.4g}")
    if name in LINEAR or (name, domain) == ("vdm", "as shipped"):  # which begins linear, but for 1e-3
        assert exact["importance"] == pytest.approx(exact["uniform"], rel=1e-9 if name in LINEAR else 1e-3)
        assert found["importance"] == pytest.approx(found["uniform"], rel=1e-3)
    else:
        assert exact["importance"] < exact["uniform"]
        assert found["importance"] < found["uniform"]


@pytest.mark.parametrize("name", NAMES)
def test_low_discrepancy_has_the_same_mean_and_less_variance(name):
    """Of a batch's mean: it loses most of what comes from where the times lie, Var_t E L, and keeps E_t Var L."""
    estimates = _estimates(name, KEPT)
    mean, variance = _moments(name, "uniform", KEPT)
    batch = {scheme: estimates[scheme].mean(axis=1) for scheme in ("uniform", "low_discrepancy")}
    found = {scheme: values.var() for scheme, values in batch.items()}
    text = f"{name}: variance of a batch independent {found['uniform']:.4g}, spread {found['low_discrepancy']:.4g}"
    print(text)
    assert levels.close(batch["low_discrepancy"], mean)
    assert levels.close((batch["uniform"] - mean) ** 2, variance / BATCH)
    assert found["low_discrepancy"] < found["uniform"], text
    # Given the times, L has the variance w² v² 2/D; and the even points in place of the integral leave that of their
    # common start.
    within = (variance + mean**2) / (1 + 2 / levels.SIZE) * 2 / levels.SIZE / BATCH
    sde, starts = levels.process(name), 500
    u = (np.arange(starts)[:, None] + 0.5) / (starts * BATCH) + np.arange(BATCH) / BATCH
    at = levels.at(sde, sde.t_min + (sde.T - sde.t_min) * u)
    between = np.var(np.mean(0.5 * (sde.T - sde.t_min) * at.rate * at.error, axis=1))
    assert levels.close((batch["low_discrepancy"] - mean) ** 2, within + between), text


def test_sampling_by_past_losses_has_the_same_mean_and_less_variance():
    """A loss e^{−12 t} (1 + noise): its history is learned from batches drawn by it; both variances are printed."""
    sde, distribution = PROCESSES["vp"](t_min=0.0 + 1e-3), TIMES["loss_second_moment"](bins=50, kept=10)
    loss_at = lambda t, keys: jnp.exp(-12 * t) * (1 + 0.3 * rng.normal(keys, ()))
    times = Times(distribution)

    @jax.jit
    def batch(state, number):
        keys = rng.for_samples(rng.at_step(rng.stream(0, "past"), number), jnp.arange(256))
        t, factor = times.draw(sde, rng.child(keys, 0), state)
        loss = loss_at(t, rng.child(keys, 1))
        return distribution.update(state, sde, t, loss), (factor * loss, factor)

    state = distribution.init()
    for number in range(60):
        state, (_, factor) = batch(state, number)
        if number == 0:
            assert np.all(np.asarray(factor) == 1)  # uniform until every bin is full
    assert bool(jnp.all(state.counts >= 10))
    later, earlier = [], []
    for number in range(60, 160):
        later.append(np.asarray(batch(state, number)[1][0], np.float64))  # the history is not followed any more
        earlier.append(np.asarray(batch(distribution.init(), number)[1][0], np.float64))
    mean = (np.exp(-12e-3) - np.exp(-12.0)) / 12 / (1 - 1e-3)
    assert levels.close(np.concatenate(later), mean)
    assert levels.close(np.concatenate(earlier), mean)
    uniform, learned = np.var(earlier), np.var(later)
    text = f"variance uniform {uniform:.4g}, by past losses {learned:.4g}"
    print(text)
    # The best p has variance mean² (E √(1 + 0.3²)…)² − mean² = 0.09 mean² here; bins and 10 kept losses add some.
    assert learned < 0.05 * uniform, text
