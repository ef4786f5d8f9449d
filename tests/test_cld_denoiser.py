"""Denoisers and objectives of critically damped Langevin diffusion, on Gaussian data, whose score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.augmented import PREDICTIONS, AugmentedDenoiser, network_denoiser
from score_sde.denoiser import Model, Parameterisation
from score_sde.errors import UserError
from score_sde.losses import WEIGHTINGS, Hybrid
from score_sde.sde.cld import CLD
from tests import cld


def test_gaussian_moments():
    for sde in (CLD(), cld.MILD):
        with jax.enable_x64(True):
            t = jnp.asarray([sde.t_min, 0.1, 0.5, sde.T])
            mean, covariance = map(np.asarray, cld.moments(sde, t))
        for row, time in enumerate(np.asarray(t)):
            expected = cld.exact(sde, time)
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
            score = np.asarray(cld.score(sde, wide, wide_t)[:, 1:])
            posterior = np.asarray(cld.posterior_mean(sde, wide, wide_t))
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
    sde = CLD()
    denoiser = cld.denoiser(sde)

    def evaluate(t):
        (mean, covariance), rates = jax.jvp(lambda s: cld.moments(sde, s), (t,), (jnp.ones_like(t),))
        family = {}
        for eta in (0.0, 0.5, 1.0):
            centre, diffusion = denoiser.reverse(mean, t, eta)
            columns = [denoiser.reverse(mean + unit[None], t, eta)[0] - centre for unit in jnp.eye(2)]
            family[eta] = centre, diffusion, jnp.stack(columns, axis=2)
        # Away from the mean, where the score is 0.
        return covariance, rates, family, (denoiser.velocity(mean + 1, t), denoiser.reverse(mean + 1, t, 0.0)[0])

    with jax.enable_x64(True):
        found = jax.jit(evaluate)(jnp.asarray(np.linspace(sde.t_min, sde.T, 9)))
    covariance, (mean_rate, covariance_rate), family, (velocity, drift) = jax.tree.map(np.asarray, found)
    for centre, diffusion, slope in family.values():
        np.testing.assert_allclose(centre, mean_rate, rtol=1e-9, atol=1e-10)
        change = slope @ covariance
        change = change + np.swapaxes(change, 1, 2)
        change[:, 1, 1] -= diffusion[:, 0] ** 2
        # A difference of terms as large as g² (1 + η²) and the score's slope 1/(γ M) = 100 times that.
        np.testing.assert_allclose(change, covariance_rate, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(velocity, drift)


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


def test_the_model_has_the_denoiser_of_its_process():
    apply = lambda params, z, label, condition, *, train, rng: params * z
    model = Model(sde=CLD(), parameterisation=Parameterisation(prediction="mixed"), apply=apply)
    denoiser = model.denoiser({"network": jnp.float32(0.5)})
    assert denoiser == AugmentedDenoiser(sde=CLD(), function=denoiser.function, prediction="mixed")
    assert denoiser.on(CLD()) is denoiser
    with pytest.raises(UserError, match="alone"):
        denoiser.on(CLD(beta=3.0))


@pytest.mark.parametrize("weighting", ["sigma2", "likelihood"])
@pytest.mark.parametrize("given", ["x_0", "z_0"])
def test_the_minimiser_is_the_exact_score(given, weighting):
    """Data N(MEAN, STD²): at ε̂_v + c·(1, x, v) the loss has gradient 0 in c at c = 0, and its closed-form minimum.

    Given x_0 or z_0, with l = l_vv of that law, the target −ε_v/l has variance 1/l², of which the score explains
    Var s_v = (C⁻¹)_vv, C the covariance of z_t. So the minimum is λ (1/l² − (C⁻¹)_vv), over λ = σ² or g².
    """
    # A wide first velocity and an early time, at which the two laws' l_vv differ by a tenth.
    sde, count = CLD(gamma=0.6), 40000
    keys = cld.keys(count, "objective")
    x_0 = cld.MEAN + cld.STD * rng.normal(rng.child(keys, 9), (1,))

    def losses(c, x_0, keys, t):
        shift = lambda z: (c[0] + c[1] * z[:, :1] + c[2] * z[:, 1:]) / sde.cholesky(t).l_vv[:, None]
        denoiser = AugmentedDenoiser(
            sde=sde, function=lambda z, t, _: cld.score(sde, z, t)[:, 1:] + shift(z), prediction="score"
        )
        loss = Hybrid(given=given)(denoiser, WEIGHTINGS[weighting](), x_0, None, keys, t, 2 * jnp.ones_like(t))
        value = jnp.stack([loss.total, loss.at_time])
        return value, value

    both = jax.jit(lambda x_0, keys, t: jax.jacfwd(losses, has_aux=True)(jnp.zeros(3), x_0, keys, t))
    for time in (0.02, 0.25, 0.8):
        t = jnp.full(count, time)
        gradients, values = (np.asarray(v, np.float64) for v in both(x_0, keys, t))
        np.testing.assert_allclose(values[0], 2 * values[1], rtol=1e-6)  # the factor
        value, gradient = values[1], gradients[1]
        assert value.shape == (count,)
        l_vv = float(sde.cholesky(t[:1], given).l_vv[0])
        sigma = float(sde.sigma(t[:1])[0])
        precision = np.linalg.inv(cld.exact(sde, float(np.float32(time)))[1])[1, 1]
        weight = sigma**2 if weighting == "sigma2" else 2 * 2 * np.sqrt(sde.mass) * sde.beta
        minimum = weight * (1 / l_vv**2 - precision)
        assert 0 < minimum < weight / l_vv**2
        # 5 standard errors.
        assert abs(value.mean() - minimum) < 5 * value.std() / np.sqrt(count)
        assert np.all(np.abs(gradient.mean(axis=0)) < 5 * gradient.std(axis=0) / np.sqrt(count))


def test_a_loss_does_not_depend_on_its_batch():
    sde, keys = CLD(), cld.keys(8, "batch")
    denoiser = AugmentedDenoiser(sde=sde, function=lambda z, t, condition: sde.data_of(z))

    @jax.jit
    def losses(keys):
        t, x_0 = jnp.full(len(keys), 0.3), jnp.zeros((len(keys), 2, 1))
        args = (WEIGHTINGS["sigma2"](), x_0, None, keys, t, jnp.ones(len(keys)))
        return [Hybrid(given=given)(denoiser, *args).total for given in ("x_0", "z_0")]

    for whole, alone in zip(losses(keys), losses(keys[3:4]), strict=True):
        assert whole.shape == (8,)
        np.testing.assert_allclose(whole[3:4], alone, rtol=1e-5)
