"""What the options claim: a shift of the noise level, and zero terminal signal-to-noise ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.sde import DDPM, VDM, VP, Cosine, FromLogSNR, Options, RectifiedFlow, Trigonometric
from tests.tables import (
    EVERY,
    PLAIN,
    SHIFTED,
    TO_ONE,
    ZERO_TERMINAL,
    compute,
    over,
    times,
    transitions,
)

LEVELS = ["alpha", "sigma", "sigma_bar", "log_snr"]


@over(SHIFTED)
def test_a_shift_multiplies_the_noise_level_by_s(sde):
    """σ̄ ← s σ̄, which is log_snr − 2 log s: "simple diffusion" with s = resolution/64."""
    t = times(sde)
    shifted, base = compute(sde, t, "float64", LEVELS), compute(sde.base, t, "float64", LEVELS)
    np.testing.assert_allclose(shifted["sigma_bar"], sde.shift * base["sigma_bar"], rtol=1e-12)
    np.testing.assert_allclose(shifted["log_snr"], base["log_snr"] - 2 * np.log(sde.shift), rtol=1e-12, atol=1e-12)


def test_the_shift_is_simple_diffusions():
    """Hoogeboom et al. 2023, eq. 2-4, for images of 256² where the base is 64²: −2 log tan(πt/2) + 2 log(64/256)."""
    t = times(PLAIN["log_snr"]).astype(np.float64)
    sde = Options(shift=256 / 64).apply(PLAIN["log_snr"])
    expected = -2 * np.log(np.tan(np.pi * t / 2)) + 2 * np.log(64 / 256)
    at = compute(sde, t, "float64", LEVELS)
    np.testing.assert_allclose(at["log_snr"], expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(at["alpha"] ** 2, 1 / (1 + np.exp(-expected)), rtol=1e-11)


def test_on_the_line_a_shift_is_stable_diffusion_3s_map_of_time():
    """Esser et al. 2024, eq. 23: the shifted process at t is the base at s t/(1 + (s − 1) t)."""
    t = times(RectifiedFlow()).astype(np.float64)
    mapped = 3 * t / (1 + 2 * t)
    at = compute(Options(shift=3.0).apply(RectifiedFlow()), t, "float64", LEVELS)
    np.testing.assert_allclose(at["sigma"], mapped, rtol=1e-12)
    np.testing.assert_allclose(at["alpha"], 1 - mapped, rtol=1e-12)


@pytest.mark.parametrize("name", ["vp", "ddpm"])
def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al(name):
    """√ᾱ of a thousand steps: shifted so that the last is zero, scaled so that the first is as before."""
    base = PLAIN[name]
    sde = Options(zero_terminal_snr=True).apply(base)
    t = np.linspace(sde.t_min, sde.T, 1000)
    at = compute(sde, t, "float64", ["alpha", "sigma"])
    root = compute(base, t, "float64", ["alpha"])["alpha"]
    first, last = root[0], root[-1]
    expected = (root - last) * first / (first - last)
    np.testing.assert_allclose(at["alpha"], expected, rtol=1e-9, atol=1e-15)  # root − last cancels, in this form
    np.testing.assert_allclose(at["sigma"] ** 2, 1 - expected**2, rtol=1e-9)


@over(ZERO_TERMINAL)
def test_zero_terminal_snr_keeps_the_start_and_the_size(sde):
    """At t_min everything is as before; ρ = √(α² + σ²) is at all times."""
    t = times(sde)
    new, old = (compute(process, t, "float64", LEVELS) for process in (sde, sde.base))
    np.testing.assert_allclose(np.hypot(new["alpha"], new["sigma"]), np.hypot(old["alpha"], old["sigma"]), rtol=1e-12)
    for name in LEVELS:
        np.testing.assert_allclose(new[name][0], old[name][0], rtol=1e-12, err_msg=name)
    assert np.all(np.diff(new["sigma_bar"] / old["sigma_bar"]) > 0)  # more noise, and ever more


@pytest.mark.parametrize(
    ("cls", "shift", "T"),
    [
        (RectifiedFlow, 1.0, 0.999),
        (RectifiedFlow, 3.0, 0.99999),
        (Trigonometric, 1.0, 0.999),
        (FromLogSNR, 1.0, 0.999),
        (Cosine, 1.0, 0.9999),
        (VP, 1.0, 1.0),
    ],
)
def test_float32_in_the_last_moments_before_pure_noise(cls, shift, T):
    """α vanishes with T − t, and keeps its digits at the very last times that float32 holds before T.

    Against algorithm 1 as it stands, in float64 and at the same times: ρ a_min (a − a_T)/(a_min − a_T).
    """
    base = Options(shift=shift).apply(cls(t_min=1e-3, T=float(np.float32(T))))
    sde = Options(zero_terminal_snr=True).apply(base)
    end = np.float32(sde.T)
    last = end - np.arange(1, 60, dtype=np.float32) * np.spacing(end, dtype=np.float32)
    t = np.unique(np.concatenate([end - np.geomspace(1e-6, 1e-2, 60).astype(np.float32), last]))
    at = compute(base, np.concatenate([[sde.t_min], t, [end]]), "float64", ["alpha", "sigma"])
    rho = np.hypot(at["alpha"], at["sigma"])
    first, *root, last = at["alpha"] / rho
    expected = rho[1:-1] * first * (np.asarray(root) - last) / (first - last)
    names = ["alpha", "alpha_derivative", "diffusion_coefficient"]
    single, double = (compute(sde, t, dtype, names) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(double["alpha"], expected, rtol=1e-8)  # root − last cancels
    for name in names:
        np.testing.assert_allclose(single[name], double[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("cls", [RectifiedFlow, Trigonometric, FromLogSNR])
def test_float32_of_the_shortest_steps_near_one(cls):
    """G² = σ_t² − (α_t σ_s/α_s)² of a step between neighbouring float32 times, where log_snr is steep and T near 1."""
    sde = cls(T=0.9999)
    t = np.float32(sde.T) - np.arange(20, dtype=np.float32) * np.spacing(np.float32(sde.T))
    s, t = t[1:], t[:-1]
    _, std = transitions(sde, s, t, "float32")
    at_s, at_t = (compute(sde, time, "float64", ["alpha", "sigma"]) for time in (s, t))
    variance = at_t["sigma"] ** 2 - (at_t["alpha"] * at_s["sigma"] / at_s["alpha"]) ** 2
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-5)


def test_the_shift_comes_first():
    """Both options: the shifted process is the one that is made to end in pure noise."""
    both = Options(shift=2.0, zero_terminal_snr=True).apply(VP())
    other = Options(zero_terminal_snr=True).apply(Options(shift=2.0).apply(VP()))
    assert both == other
    assert Options().apply(VP()) == VP()


def test_what_ends_in_noise_already_is_refused():
    for sde in TO_ONE.values():
        with pytest.raises(UserError, match="ends in pure noise already"):
            Options(zero_terminal_snr=True).apply(sde)
    for sde in EVERY.values():
        assert sde.ends_in_noise == (sde in ZERO_TERMINAL.values() or sde in TO_ONE.values())


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_bad_shift_is_refused(shift):
    with pytest.raises(UserError, match="shift"):
        Options(shift=shift)


def test_options_of_a_learned_process_are_learned():
    """Parameters reach the base through both options, and gradients come back; also inside a compiled program."""
    sde = Options(shift=2.0, zero_terminal_snr=True).apply(VDM(features=4))
    assert sde.learned
    assert sde.ends_in_noise
    params = sde.init()
    t = jnp.linspace(0.1, 1, 4)
    gradient = jax.jit(jax.grad(lambda params: sde.bind(params).alpha(t).sum()))(params)
    assert np.all(np.isfinite(gradient["ends"]))
    assert np.all(np.asarray(gradient["ends"]) != 0)
    wider = {**params, "ends": params["ends"] + jnp.asarray([0.0, 2.0])}
    assert np.all(np.asarray(sde.bind(wider).sigma(t)[:-1]) > np.asarray(sde.bind(params).sigma(t)[:-1]))


@pytest.mark.parametrize("cls", [RectifiedFlow, Cosine, Trigonometric])
def test_processes_may_end_at_one(cls):
    """T = 1: pure noise, and a transition there from any time before forgets the state."""
    sde = cls(T=1.0)
    sde.check_float32()
    assert sde.ends_in_noise
    scale, std = transitions(sde, np.asarray([0.1, 0.9]), np.ones(2), "float32")
    np.testing.assert_array_equal(scale, 0)
    np.testing.assert_allclose(std, 1, rtol=1e-6)


def test_a_chain_stays_one_under_the_options():
    """Lin et al. 2024 train and sample DDPM's own steps at zero terminal SNR."""
    for options in (Options(shift=2.0), Options(zero_terminal_snr=True)):
        chain, plain = options.apply(DDPM(steps=50, t_min=0.02)), DDPM(steps=50, t_min=0.02)
        np.testing.assert_array_equal(chain.step_times, plain.step_times)
        t = jnp.asarray(plain.step_times, jnp.float32)
        np.testing.assert_array_equal(chain.step_label(t), plain.step_label(t))
    assert Options(shift=2.0).apply(VP()).step_times is None


@pytest.mark.parametrize("sde", [RectifiedFlow(T=1.0), Options(zero_terminal_snr=True).apply(VP())], ids=["flow", "vp"])
def test_from_the_end_to_itself_nothing_happens(sde):
    end = jnp.asarray([sde.T], jnp.float32)
    scale, std = sde.transition_coefficients(end, end)
    np.testing.assert_array_equal([scale[0], std[0]], [1, 0])
