"""What each process claims for itself: its paper's formulas, its discrete chain, its learned parameters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from score_sde.sde import AUGMENTED, CURVES, DDPM, PROCESSES, SMLD, VDM, VP, Cosine, SubVP
from score_sde.sde.formula import FUNCTIONS
from tests.tables import PLAIN, compute, prior_mismatch, table, times, transitions

# α, σ, f and g² as the papers state them.


def _beta(sde, t):
    return sde.beta_min + t * (sde.beta_max - sde.beta_min)


def _integrated_beta(sde, t):
    return sde.beta_min * t + (sde.beta_max - sde.beta_min) * t**2 / 2


def _vp(sde, t):
    """Song et al. 2021, eq. 29 and 33."""
    integral = _integrated_beta(sde, t)
    return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), -_beta(sde, t) / 2, _beta(sde, t)


def _subvp(sde, t):
    """Song et al. 2021, appendix B."""
    integral = _integrated_beta(sde, t)
    g_squared = -_beta(sde, t) * np.expm1(-2 * integral)
    return np.exp(-integral / 2), -np.expm1(-integral), -_beta(sde, t) / 2, g_squared


def _ve(sde, t):
    """Song et al. 2021, eq. 30-31."""
    sigma = sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t
    return 1 + 0 * t, sigma, 0 * t, 2 * sigma**2 * np.log(sde.sigma_max / sde.sigma_min)


def _cosine(sde, t):
    """Nichol & Dhariwal 2021, eq. 17: ᾱ = cos²φ(t)/cos²φ(0). Variance is preserved if g² = −2f = 2 φ' tan φ."""
    rate = np.pi / 2 / (1 + sde.offset)
    angle, start = rate * (t + sde.offset), rate * sde.offset
    variance = (np.cos(start) ** 2 - np.cos(angle) ** 2) / np.cos(start) ** 2
    return np.cos(angle) / np.cos(start), np.sqrt(variance), -rate * np.tan(angle), 2 * rate * np.tan(angle)


def _edm(sde, t):
    """Karras et al. 2022, table 1: s(t) = 1, σ(t) = t."""
    return 1 + 0 * t, t, 0 * t, 2 * t


def _rectified_flow(sde, t):
    """Liu et al. 2023, x_t = (1 − t) x_0 + t ε; g² = dσ²/dt − 2fσ² = 2t + 2t²/(1 − t)."""
    return 1 - t, t, -1 / (1 - t), 2 * t + 2 * t**2 / (1 - t)


def _trigonometric(sde, t):
    """Albergo & Vanden-Eijnden 2023."""
    angle = np.pi * t / 2
    return np.cos(angle), np.sin(angle), -np.pi / 2 * np.tan(angle), np.pi * np.tan(angle)


def _ddpm(sde, t):
    """The chain's product as a ratio of Gamma functions, by SciPy's; see the module."""
    slope = (sde.beta_max - sde.beta_min) / (sde.steps * (sde.steps - 1))
    i = sde.steps * t
    z = (1 - sde.beta_min / sde.steps - (i - 1) * slope) / slope
    integral = -i * np.log(slope) + scipy.special.gammaln(z) - scipy.special.gammaln(z + i)
    rate = sde.steps * (-np.log(slope) - scipy.special.digamma(z))
    return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), -rate / 2, rate


PAPER = {
    "vp": _vp,
    "subvp": _subvp,
    "ve": _ve,
    "smld": _ve,
    "cosine": _cosine,
    "edm": _edm,
    "rectified_flow": _rectified_flow,
    "trigonometric": _trigonometric,
    "log_snr": _trigonometric,  # its default, −2 log tan(πt/2), is this process
    "ddpm": _ddpm,
}
# float64 rounding of these forms of the formulas: 1e-11 leaves a factor 1e4 and more. The Gamma functions are 6e5, of
# which 1e-16 is 6e-11 of B = 1e-4 ... 10, hence 6e-7 of the smallest; σ² of the cosine is a difference of ones, 1e-5 at
# the smallest t.
TOLERANCE = {"ddpm": 1e-6, "cosine": 1e-9}


def test_every_process_has_its_papers_formula():
    assert set(PAPER) == set(PROCESSES) - {"vdm"}  # which is learned


@pytest.mark.parametrize("name", sorted(PAPER))
def test_coefficients_are_the_papers(name):
    sde = PLAIN[name]
    at = table(sde, "float64")
    names = ("alpha", "sigma", "drift_coefficient", "diffusion_coefficient")
    expected = PAPER[name](sde, times(sde).astype(np.float64))
    for coefficient, value in zip(names, expected, strict=True):
        power = 2 if coefficient == "diffusion_coefficient" else 1
        np.testing.assert_allclose(
            at[coefficient] ** power, value, rtol=TOLERANCE.get(name, 1e-11), atol=0, err_msg=coefficient
        )


def test_constant_beta_is_allowed():
    """β_min = β_max: B = β t, whose inverse has no square root of a difference."""
    sde = SubVP(beta_min=2.0, beta_max=2.0)
    t = jnp.linspace(0.01, 1, 5)
    np.testing.assert_allclose(sde.time_of_log_snr(sde.log_snr(t)), t, rtol=1e-5)


def test_the_cosine_schedule_without_offset_keeps_its_digits():
    """f = −(π/2) tan(πt/2) is 2.5e-5 at t = 1e-5: the derivative of a cosine that is 1 to float32."""
    sde = Cosine(offset=0.0)
    t = times(sde)
    f = compute(sde, t, "float32", ["drift_coefficient"])["drift_coefficient"]
    np.testing.assert_allclose(f, -np.pi / 2 * np.tan(np.pi / 2 * t.astype(np.float64)), rtol=1e-5)


# --- the discrete chains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [100, 1000])
def test_ddpm_is_the_chain_at_the_chains_times(steps):
    """α_i² = Π (1 − β_j); x_i = √(1 − β_i) x_{i−1} + √β_i z; Ho et al. 2020, eq. 2 and 4."""
    sde = DDPM(steps=steps, t_min=1 / steps)
    if steps == 1000:
        np.testing.assert_allclose(sde.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-14)  # sec. 4 of the paper
    t, betas = sde.step_times, np.asarray(sde.betas)
    product = np.cumprod(1 - betas)
    at = compute(sde, t, "float64", ["alpha", "sigma"])
    np.testing.assert_allclose(at["alpha"] ** 2, product, rtol=1e-12)
    np.testing.assert_allclose(at["sigma"] ** 2, 1 - product, rtol=1e-11)
    scale, std = transitions(sde, t[:-1], t[1:], "float64")
    np.testing.assert_allclose(scale, np.sqrt(1 - betas[1:]), rtol=1e-12)
    np.testing.assert_allclose(std, np.sqrt(betas[1:]), rtol=1e-9)
    single = compute(sde, t.astype(np.float32), "float32", ["alpha", "sigma"])
    # A time rounded to float32 moves B by β 6e-8 t, hence α_i² by 20 · 6e-8 at the end.
    np.testing.assert_allclose(single["alpha"] ** 2, product, rtol=2e-6)


def test_ddpm_becomes_vp_as_the_steps_shrink():
    """At O(1/N): the difference of B = −2 log α halves when N doubles."""
    errors = []
    for steps in (500, 1000, 2000):
        t = np.linspace(0.01, 1, 50)
        chain, limit = (compute(sde, t, "float64", ["alpha"])["alpha"] for sde in (DDPM(steps=steps, t_min=0.01), VP()))
        errors.append(np.abs(2 * np.log(chain / limit)).max())
    assert errors[0] < 0.2
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.02)  # of the next order, 20/500


def test_smld_is_the_chain_at_the_chains_times():
    """σ_i = σ_min (σ_max/σ_min)^{i/(N−1)}; x_i = x_{i−1} + √(σ_i² − σ_{i−1}²) z."""
    sde = SMLD(scales=50)
    t, scales = sde.step_times, np.geomspace(0.01, 50.0, 50)
    np.testing.assert_allclose(compute(sde, t, "float64", ["sigma"])["sigma"], scales, rtol=1e-12)
    scale, std = transitions(sde, t[:-1], t[1:], "float64")
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_allclose(std, np.sqrt(np.diff(scales**2)), rtol=1e-9)


@pytest.mark.parametrize("sde", [DDPM(), SMLD(), DDPM(steps=50, t_min=0.02), SMLD(scales=2)], ids=repr)
def test_labels_are_whole_numbers_at_the_chains_times(sde):
    """DDPM's rise from 0 at the first step; NCSN's fall to 0 at the largest scale."""
    assert sde.step_times is not None
    t = jnp.asarray(sde.step_times, jnp.float32)
    assert np.all(np.diff(np.asarray(t)) > 0)
    assert sde.t_min <= sde.step_times[0]
    assert sde.step_times[-1] == sde.T
    counted = np.arange(len(t)) if isinstance(sde, DDPM) else np.arange(len(t))[::-1]
    np.testing.assert_allclose(sde.step_label(t), counted, rtol=0, atol=2e-4)  # N · float32 rounding


def test_continuous_processes_have_no_steps():
    assert {name for name, sde in PLAIN.items() if sde.step_times is not None} == {"ddpm", "smld"}


# --- the learned schedule ------------------------------------------------------------------------------------------


def test_vdm_begins_linear():
    """Its sigmoids weigh 1e-3 in all, so the share departs from τ by at most 1e-3."""
    sde = VDM()
    t = times(sde).astype(np.float64)
    linear = sde.log_snr_max + (sde.log_snr_min - sde.log_snr_max) * t
    departure = np.abs(table(sde, "float64")["log_snr"] - linear)
    assert departure.max() <= 1e-3 * (sde.log_snr_max - sde.log_snr_min)
    assert departure[-1] < 1e-5  # its ends are float32 parameters


@pytest.mark.parametrize("seed", range(3))
def test_vdm_is_monotone_for_any_parameters(seed):
    sde = VDM(features=16, t_min=0.1, T=0.8)
    generator = np.random.default_rng(seed)
    params = sde.init()
    params["shape"] = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape) * 3, jnp.float32), params["shape"]
    )
    params["ends"] = jnp.asarray([-8.0, 3.0])  # learned ends
    bound = sde.bind(params)
    at = compute(bound, np.linspace(0.1, 0.8, 101), "float64", ["log_snr", "alpha", "sigma", "diffusion_coefficient"])
    np.testing.assert_allclose(at["log_snr"][[0, -1]], [8, -3], rtol=1e-6)
    assert np.all(np.diff(at["log_snr"]) < 0)
    assert np.all(at["diffusion_coefficient"] > 0)
    np.testing.assert_allclose(at["alpha"] ** 2 + at["sigma"] ** 2, 1, rtol=1e-12)
    with jax.enable_x64(True):
        levels = jnp.linspace(7.9, -2.9, 21)
        back = jax.jit(lambda levels: bound.log_snr(bound.time_of_log_snr(levels)))(levels)
    np.testing.assert_allclose(back, levels, rtol=0, atol=1e-6)


def test_vdm_parameters_are_bound_and_learn():
    sde = VDM(features=4)
    assert sde.learned
    assert not sde.bind(sde.init()).ends_in_noise
    t = jnp.linspace(0.0, 1.0, 3)
    np.testing.assert_array_equal(sde.bind(sde.init()).log_snr(t), sde.log_snr(t))
    gradient = jax.jit(jax.grad(lambda params: sde.bind(params).log_snr(t).sum()))(sde.init())
    # −γ(t) at t = 0, 1: the ends themselves, and in between a share of each.
    assert float(-gradient["ends"].sum()) == pytest.approx(3, rel=1e-6)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    assert not any(PLAIN[name].learned for name in PLAIN if name != "vdm")
    assert PLAIN["vp"].init() == {}
    assert PLAIN["vp"].bind({}) is PLAIN["vp"]


# --- the curves ----------------------------------------------------------------------------------------------------

EQUATIONS = {
    "vp": lambda alpha, sigma: alpha**2 + sigma**2,
    "ve": lambda alpha, sigma: alpha,
    "linear": lambda alpha, sigma: alpha + sigma,
    "subvp": lambda alpha, sigma: sigma + alpha**2,
}


@pytest.mark.parametrize("name", sorted(CURVES))
def test_a_curves_point_and_norm_agree(name):
    """The point has the asked log_snr and satisfies the curve's equation; c is homogeneous, and 1 on the curve."""
    with jax.enable_x64(True):
        log_snr = jnp.linspace(-30, 30, 61)
        alpha, sigma = CURVES[name].point(log_snr)
        np.testing.assert_allclose(2 * np.log(alpha / sigma), log_snr, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(EQUATIONS[name](alpha, sigma), 1, rtol=1e-12)
        np.testing.assert_allclose(CURVES[name].norm(alpha, sigma), 1, rtol=1e-12)
        np.testing.assert_allclose(CURVES[name].norm(3 * alpha, 3 * sigma), 3, rtol=1e-12)
        if name != "ve":  # α = 0 is the curve's end, where σ = 1
            assert float(CURVES[name].norm(jnp.asarray(0.0), jnp.asarray(2.0))) == 2
    single = CURVES[name].point(jnp.linspace(-30, 30, 61))
    for one, other in zip(single, (alpha, sigma), strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-6)  # the rounding of log_snr = 30 is 30 · 6e-8 of it


# --- docs/processes.md ---------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parent.parent / "docs" / "processes.md").read_text(encoding="utf-8")
ROWS = {  # of several rows that begin with a name, the first in the document
    cells[0].strip("` "): [cell.strip() for cell in cells]
    for cells in (line.strip("|").split("|") for line in reversed(DOCUMENT.splitlines()) if line.startswith("| `"))
}


@pytest.mark.parametrize("name", [*PROCESSES, *AUGMENTED])
def test_every_process_is_in_the_document(name):
    assert name in ROWS


@pytest.mark.parametrize("name", PROCESSES)
def test_the_documents_numbers_are_the_defaults(name):
    """The prior's σ_T, its mismatch and the domain."""
    sde, (*_, prior, mismatch, domain, _) = PLAIN[name], ROWS[name]
    sigma = compute(sde, np.asarray([sde.T]), "float64", ["sigma"])["sigma"][0]
    assert prior == f"{sigma:.4g}" or float(prior) == pytest.approx(sigma, abs=6e-4)
    assert mismatch == f"{prior_mismatch(sde, 0.5, 0.5):.1e}"
    t_min, T = domain.split("]")[0].strip("[").split(",")
    assert (1 / sde.steps if t_min == "1/N" else float(t_min), float(T)) == (sde.t_min, sde.T)


def test_the_document_shows_the_formulas_functions():
    for function in FUNCTIONS:
        assert function in DOCUMENT
    for curve in CURVES:
        assert f"| `{curve}` |" in DOCUMENT
