"""Learned variances of reverse steps: the objective and the solver, against guided-diffusion's own code and Gaussians.

Those that it recorded are in fixtures/learned_variance.npz, see record_learned_variance.py.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import build, rng
from score_sde.denoiser import Denoiser
from score_sde.errors import UserError
from score_sde.experiment import agreement, compare
from score_sde.losses import OBJECTIVES, WEIGHTINGS
from score_sde.losses.learned_variance import step_bits
from score_sde.samplers import SOLVERS, Sampler, run
from score_sde.samplers.schedule import Schedule, transition
from score_sde.sde import DDPM, EDM, SMLD, RectifiedFlow, expand
from score_sde.typing import WithVariance
from tests import program, recorded, solving
from tests.solving import every_process, keys_of

SOLVER, OBJECTIVE = SOLVERS["learned_ancestral"](), OBJECTIVES["learned_variance"]()
SIGMA2 = WEIGHTINGS["sigma2"]()
CHAIN = DDPM()
ADM = program.ROOT / "configs" / "adm" / "imagenet128.py"


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(x, t):
    """The recorded network: ε̂ and v of the chain's step t, counted from 0."""
    t = 0.001 * expand(t, x)
    return WithVariance(0.9 * jnp.sin(x + t), jnp.cos(2 * x - 3 * t))


def denoiser_of(sde, function=network):
    return Denoiser(sde=sde, function=lambda x, t, c: function(x, sde.step_label(t)), prediction="epsilon")


def constant(sde, place):
    """Some denoiser, with the same place for all variances."""
    return Denoiser(sde=sde, function=lambda x, t, c: WithVariance(jnp.sin(x), jnp.full_like(x, place)))


# --- guided-diffusion's own numbers -----------------------------------------------------------------------------------


@jax.jit
def bits_of(x_0, noise, t):
    """The bound's term of each sample."""
    x_t = expand(CHAIN.alpha(t), x_0) * x_0 + expand(CHAIN.sigma(t), x_0) * noise
    (data,), place = denoiser_of(CHAIN).with_variance(("x_0",), x_t, t)
    return jnp.mean(step_bits(CHAIN, x_0, data, place, t), axis=(1, 2, 3))


def test_the_loss_is_guided_diffusions(x64, monkeypatch):
    """L_simple, L_vlb and their sum, at the first steps, in the middle and at the last; N/1000 is 1."""
    _, arrays = recorded.read("learned_variance.npz", "training")
    monkeypatch.setattr(rng, "normal", lambda keys, shape, dtype: jnp.asarray(arrays["noise"]))
    x_0, t = jnp.asarray(arrays["x_0"]), jnp.asarray((arrays["steps"] + 1) / 1000)
    denoiser, factor = denoiser_of(CHAIN), jnp.full(len(t), 3.0)
    loss = jax.jit(lambda t: OBJECTIVE(denoiser, SIGMA2, x_0, None, keys_of(len(t)), t, factor))(t)
    np.testing.assert_allclose(loss.at_time, arrays["loss"], rtol=1e-7)
    np.testing.assert_allclose(loss.total, 3 * arrays["loss"], rtol=1e-7)

    bits = bits_of(x_0, jnp.asarray(arrays["noise"]), t)
    np.testing.assert_allclose(bits, arrays["vb"], rtol=1e-7)
    np.testing.assert_allclose(bits, arrays["published_vb"], rtol=1e-7, atol=0.01)  # its normal law is approximate


def test_the_loss_in_float32_is_that_in_float64():
    """Of the same numbers, at every kind of step."""
    _, arrays = recorded.read("learned_variance.npz", "training")
    x_0, noise = (jnp.asarray(arrays[name], jnp.float32) for name in ("x_0", "noise"))
    t = jnp.asarray((arrays["steps"] + 1) / 1000, jnp.float32)
    bits = bits_of(x_0, noise, t)
    np.testing.assert_allclose(bits, arrays["vb"], rtol=1e-4)  # D has 4 digits, where its noise is 1e-2 of the data


def sampling(monkeypatch):
    """What was recorded, and the times of its chain."""
    _, arrays = recorded.read("learned_variance.npz", "sampling")
    noises = jnp.asarray(arrays["noises"])
    monkeypatch.setattr(rng, "child", lambda keys, number: number)
    monkeypatch.setattr(rng, "normal", lambda number, shape, dtype: noises[number])
    return arrays, [float(time) for time in (arrays["kept"][::-1] + 1) / 1000]


def test_every_step_of_a_respaced_chain_is_guided_diffusions(x64, monkeypatch):
    """p_sample_loop with the noise given: the states after one step, two, …, and the last, which is D at t_1."""
    arrays, times = sampling(monkeypatch)
    denoiser, x_T = denoiser_of(CHAIN), jnp.asarray(arrays["x_T"])
    for count in range(1, len(times)):
        plan = SOLVER.plan(CHAIN, np.asarray(times[: count + 1]))
        samples = run(SOLVER, denoiser, plan, x_T, keys_of(2))
        np.testing.assert_allclose(samples.x, arrays["states"][count - 1], rtol=1e-7, atol=1e-9)
    last = run(SOLVER, denoiser, plan, x_T, keys_of(2), last="denoise")
    np.testing.assert_allclose(last.x, arrays["states"][-1], rtol=1e-7, atol=1e-9)
    assert np.all(last.evaluations == len(times))


# --- the two ends -----------------------------------------------------------------------------------------------------


def plan_of(sde, solver=SOLVER, steps=5):
    return Sampler(solver=solver, steps=steps).plan(sde)


@every_process
def test_the_least_variance_is_ancestral_samplings(sde):
    """Mean and noise of each step, as the plan of `ancestral` has them."""
    rows, matrix = plan_of(sde).rows, plan_of(sde, SOLVERS["ancestral"]()).rows.matrix
    np.testing.assert_allclose(np.stack([rows.data, rows.noise, rows.least], axis=1), matrix[:, 0, 2:5], rtol=1e-12)


def test_with_the_least_variance_samples_are_those_of_ancestral_sampling(x64):
    sde, x = solving.MILD["vp"], jnp.linspace(-1, 1, 6).reshape(2, 3)
    one, other = (
        run(solver, constant(sde, -1.0) if solver is SOLVER else without(sde), plan_of(sde, solver), x, keys_of(2))
        for solver in (SOLVER, SOLVERS["ancestral"]())
    )
    np.testing.assert_allclose(one.x, other.x, rtol=1e-9)
    np.testing.assert_array_equal(one.evaluations, other.evaluations)


def without(sde):
    return Denoiser(sde=sde, function=lambda x, t, c: jnp.sin(x))


@every_process
def test_the_largest_variance_is_that_of_standard_normal_data(sde):
    """x_s ~ N(0, α_s² + σ_s²) and x_t = a x_s + G ε, by Bayes' rule; which is 1 − α_t²/α_s² where α² + σ² = 1."""
    rows, levels = plan_of(sde).rows, Schedule.of(sde).at(np.linspace(sde.T, sde.t_min, 6))
    for number, (t, s) in enumerate(itertools.pairwise(levels)):
        a, std = transition(s, t)
        variance = 1 / (1 / (s.alpha**2 + s.sigma**2) + (a / std) ** 2)
        largest = rows.least[number] ** 2 * np.exp(rows.log_ratio[number])
        assert largest == pytest.approx(variance, rel=1e-9)
        if sde.curve == "vp":
            assert largest == pytest.approx(std**2, rel=1e-9)


# --- Gaussian data, of which the variance of x_s given x_t is known ---------------------------------------------------


def best_place(log_snr_s, log_snr_t, std):
    """e^Δ = (1 + c² SNR_s)/(1 + c² SNR_t), of which the greatest is that of c = 1."""
    delta = lambda c: np.log1p(c**2 * np.exp(log_snr_s)) - np.log1p(c**2 * np.exp(log_snr_t))
    return 2 * delta(std) / delta(1.0) - 1


@every_process
def test_the_best_variance_makes_the_law_of_few_steps_exact(sde):
    """Of a Gaussian x_s given x_t is one: mean and variance are carried along from x_T to t_min, in three steps."""
    rows, mean, std = plan_of(sde, steps=3).rows, 0.5, 0.4
    first, *levels = Schedule.of(sde).at(np.linspace(sde.T, sde.t_min, 4))
    at = lambda level: (level.alpha * mean, (level.alpha * std) ** 2 + level.sigma**2)
    (m, variance), t = at(first), first
    for number, s in enumerate(levels):
        gain = t.alpha * std**2 / at(t)[1]
        data, noise = mean + gain * (m - t.alpha * mean), t.sigma / at(t)[1] * (m - t.alpha * mean)
        slope = rows.data[number] * gain + rows.noise[number] * t.sigma / at(t)[1]
        place = best_place(2 * s.lambda_t, 2 * t.lambda_t, std)
        spread = rows.least[number] ** 2 * np.exp(0.5 * (1 + place) * rows.log_ratio[number])
        m, variance, t = rows.data[number] * data + rows.noise[number] * noise, slope**2 * variance + spread, s
        np.testing.assert_allclose([m, variance], at(s), rtol=1e-8)


@pytest.mark.parametrize("std", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sde", [DDPM(steps=20, t_min=0.05, beta_max=6.0), SMLD(scales=8, sigma_max=5.0)], ids=repr)
def test_the_best_variance_is_where_the_bound_is_least(sde, std, x64):
    """Its derivative in v is 0 there, of exact D and in the mean over draws, and on both sides leads to it."""
    count, numbers = 20_000, (1, 4, len(sde.step_times) - 1)
    keys = keys_of(count)
    x_0 = 0.3 + std * rng.normal(rng.child(keys, 0), (1,), jnp.float64)
    noise = rng.normal(rng.child(keys, 1), (1,), jnp.float64)
    for number in numbers:
        s, t = Schedule.of(sde).at(sde.step_times[[number - 1, number]])
        place = best_place(2 * s.lambda_t, 2 * t.lambda_t, std)
        x_t, time = t.alpha * x_0 + t.sigma * noise, jnp.full(count, t.t)
        data = 0.3 + t.alpha * std**2 / ((t.alpha * std) ** 2 + t.sigma**2) * (x_t - t.alpha * 0.3)
        slope = jax.jit(jax.grad(lambda v, data=data, time=time: jnp.sum(step_bits(sde, x_0, data, v, time))))
        low, best, high = (np.asarray(slope(jnp.full_like(x_0, place + off))) for off in (-0.5, 0.0, 0.5))
        error = best.std() / np.sqrt(count)
        assert abs(best.mean()) <= 5 * error + 1e-12
        assert low.mean() < -error <= error < high.mean()


# --- what learns what -------------------------------------------------------------------------------------------------


def test_the_bound_trains_the_variance_alone_and_the_error_the_prediction_alone():
    x_0, keys, t = jnp.linspace(-1, 1, 16).reshape(4, 4), keys_of(4), jnp.asarray([0.001, 0.002, 0.5, 1.0])

    def total(name, parameters):
        a, b = parameters
        function = lambda x, t: WithVariance(a * jnp.sin(x), b * jnp.cos(x))
        return jnp.sum(OBJECTIVES[name]()(denoiser_of(CHAIN, function), SIGMA2, x_0, None, keys, t, jnp.ones(4)).total)

    grad = lambda name: jax.jit(jax.grad(lambda parameters: total(name, parameters)))(jnp.asarray([0.9, 0.3]))
    both, error = grad("learned_variance"), grad("denoising")
    np.testing.assert_allclose(both[0], error[0], rtol=1e-6)
    assert error[1] == 0
    assert both[1] != 0


def test_gradients_are_finite_however_wrong_the_network_is():
    x_0, t = jnp.linspace(-1, 1, 12).reshape(6, 2), jnp.asarray([0.001, 0.002, 0.003, 0.5, 0.999, 1.0])
    for wrong in (0.0, 1.0, -300.0, 1e4):
        slope = jax.jit(jax.grad(lambda v, wrong=wrong: jnp.sum(step_bits(CHAIN, x_0, x_0 + wrong, v, t))))
        for place in (-1.5, 0.0, 1.5):
            assert np.all(np.isfinite(slope(jnp.full_like(x_0, place))))


@pytest.mark.parametrize("name", ["loss", "step"])
def test_one_evaluation_is_one_call_of_the_network(name):
    seen, t, ones = [], jnp.full(2, 0.5), jnp.ones(2)
    function = lambda x, t: (seen.append(1), network(x, t))[1]
    denoiser, x = denoiser_of(CHAIN, function), jnp.ones((2, 3))
    if name == "loss":
        jax.eval_shape(lambda t: OBJECTIVE(denoiser, SIGMA2, x, None, keys_of(2), t, ones), t)
    else:
        jax.eval_shape(lambda x: run(SOLVER, denoiser, plan_of(CHAIN), x, keys_of(2)), x)
    assert len(seen) == 1


def test_another_process_takes_the_same_steps_in_its_own_coordinates(x64):
    """Trained on the chain, sampled on EDM's process between the same noise levels: x/α is the same."""
    times = np.array([0.9, 0.6, 0.3, 0.01])
    levels = Schedule.of(CHAIN).at(times)
    other = EDM(t_min=0.02)
    there = Schedule.of(other).times([level.lambda_t for level in levels])
    denoiser, x = denoiser_of(CHAIN), jnp.linspace(-1, 1, 6).reshape(2, 3)
    one = run(SOLVER, denoiser, SOLVER.plan(CHAIN, times), x, keys_of(2))
    scaled = run(SOLVER, denoiser.on(other), SOLVER.plan(other, there), x / levels[0].alpha, keys_of(2))
    np.testing.assert_allclose(scaled.x, one.x / levels[-1].alpha, rtol=1e-6)


# --- the contract of a solver -----------------------------------------------------------------------------------------


def test_it_runs_from_pure_noise_and_keeps_the_contract():
    sde = RectifiedFlow(T=1.0)
    plans = [plan_of(sde, steps=steps) for steps in (1, 10, 50)]
    assert all(np.all(np.isfinite(leaf)) for plan in plans for leaf in plan.rows)
    assert len({str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), plan)) for plan in plans}) == 1
    denoiser = constant(sde, 0.3)
    drive = jax.jit(lambda plan, x, keys, last: run(SOLVER, denoiser, plan, x, keys, last=last), static_argnums=3)
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    none, mean, denoise = (drive(plans[1], x, keys_of(2), last) for last in ("none", "mean", "denoise"))
    assert np.all(np.isfinite(none.x))
    assert not np.array_equal(none.x, mean.x)
    np.testing.assert_allclose(denoise.x, np.sin(none.x), atol=1e-6)
    assert (int(none.evaluations[0]), int(mean.evaluations[0]), int(denoise.evaluations[0])) == (10, 10, 11)
    assert not np.array_equal(none.x, drive(plans[1], x, keys_of(2, "other"), "none").x)
    alone = drive(plans[1], x[1:], keys_of(2)[1:], "none")
    np.testing.assert_allclose(alone.x, none.x[1:], rtol=0, atol=1e-5)


# --- what is refused, and what is not lost ----------------------------------------------------------------------------


def test_a_denoiser_made_of_the_prediction_alone_has_no_variance():
    """It is not dropped silently, nor does a function that keeps it lose it."""
    denoiser, x, t = denoiser_of(CHAIN), jnp.ones((2, 3)), jnp.full(2, 0.5)
    alone = dataclasses.replace(denoiser, function=lambda x, t, c: 2 * denoiser.epsilon(x, t, c))
    with pytest.raises(UserError, match="says nothing of the variances of steps"):
        run(SOLVER, alone, plan_of(CHAIN), x, keys_of(2))

    def guided(x, t, condition):
        prediction, place = denoiser.function(x, t, condition)
        return WithVariance(2 * prediction, place)

    kept = dataclasses.replace(denoiser, function=guided)
    (noise,), place = kept.with_variance(("epsilon",), x, t)
    np.testing.assert_allclose(noise, alone.epsilon(x, t), rtol=1e-6)
    np.testing.assert_array_equal(place, denoiser.function(x, t, None).place)


SMALL = {
    "data.source": "synthetic",
    "data.size": "16",
    "data.records": "4",
    "data.classes": "1000",
    "data.channels": "3",
    "evaluation.metrics": "frechet",
    "model.channels": "32",
    "model.channel_multipliers": "1,1",
    "model.attention_resolutions": "8",
    "model.blocks_per_resolution": "1",
    "training.batch_size": "2",
    "training.duration": "2 steps",
    "sampling.num_samples": "2",
    "sampling.batch_size": "2",
    "samplers.learned_ancestral.steps": "3",
}


def adm(tmp_path, **overrides):
    """configs/adm/imagenet128.py, small, with these overrides."""
    return build.build(build.load_config(str(ADM)), {**SMALL, **overrides}, tmp_path, "")


REFUSED = {
    "objective": ({"model.learned_variance": "False"}, "objective: 'learned_variance' needs a network that learns"),
    "solver": (
        {"model.learned_variance": "False", "objective.name": "denoising"},
        "samplers.learned_ancestral: needs a network that learns the variances of steps: set model.learned_variance",
    ),
    "times": ({"times.name": "uniform"}, "'learned_variance' needs times.name 'steps', not 'uniform'"),
    "process": (
        {"sde.name": "vp", "times.name": "uniform", "parameterisation.noise_condition": "time"},
        "objective: 'learned_variance' needs a process with steps of its own",
    ),
    "augmented": ({"sde.name": "cld"}, "model.learned_variance is for affine processes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_named(case, tmp_path):
    overrides, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        agreement.check(adm(tmp_path, **overrides))


def test_what_is_not_trained_may_be_there(tmp_path):
    agreement.check(adm(tmp_path))
    agreement.check(adm(tmp_path, **{"objective.name": "denoising"}))


def test_an_oracle_has_no_learned_variance(tmp_path):
    with pytest.raises(UserError, match="learned_ancestral: an oracle has no learned variances; use 'ancestral'"):
        compare.check(adm(tmp_path, **{"compare.oracle": "ring", "compare.samplers": "learned_ancestral"}))


@pytest.fixture
def quick_compiling():
    """What is compiled runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_config_trains_and_samples(tmp_path, quick_compiling):
    """Two steps of ADM at a small size, then three of the sampler and D of the last state."""
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    for mode in ("train", "sample"):
        assert program.main(program.flags(tmp_path / "run", mode, *flags, config=ADM)) == 0
    with np.load(tmp_path / "run" / "samples" / "learned_ancestral.npz") as stored:
        assert np.all(np.isfinite(stored["samples"]))
        np.testing.assert_array_equal(stored["evaluations"], 4)
