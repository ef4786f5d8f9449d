r"""What is the same by theory is the same here: on every affine process, along grids that are uniform in nothing.

Both sides are run in float64, by the matrices that the device is given (`solving.execute`), on one mixture and with the
same noises. Or against the formula of a paper, written out here.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from score_sde.samplers import SOLVERS, Solver
from score_sde.samplers.predictor_corrector import PREDICTORS
from score_sde.samplers.schedule import Level, Schedule
from score_sde.sde import EDM, PROCESSES, SDE, VP
from tests import solving
from tests.solving import BIMODAL, MILD, every_process, keys_of, solver_of

POINTS = np.linspace(-1.5, 1.5, 5)
STEPS = 6


@functools.cache
def times(sde: SDE) -> tuple[float, ...]:
    """From T to t_min, uneven in λ."""
    start, end = (level.lambda_t for level in Schedule.of(sde).at([sde.T, sde.t_min]))
    share = np.array([0.12, 0.3, 0.41, 0.7, 0.83])
    inner = Schedule.of(sde).times(start + share * (end - start))
    return (sde.T, *map(float, inner), sde.t_min)


def levels(sde: SDE) -> list[Level]:
    return Schedule.of(sde).at(times(sde))


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=POINTS.shape)


def outcome(solver: Solver, sde: SDE) -> tuple[np.ndarray, np.ndarray]:
    """x and its mean, from points of the size of x_T."""
    (level,) = Schedule.of(sde).at([sde.T])
    plan = solving.plan_of(solver, sde, times=times(sde))
    return solving.execute(plan, sde, solving.bimodal, level.sigma * POINTS, noise)


def assert_same(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], sde: SDE) -> None:
    both = [np.stack(outcome(solver_of(*case), sde)) for case in (one, other)]
    assert np.all(np.isfinite(both[0]))
    # x/α and σ̄ ε̂ are up to 1/α ≤ 1000 larger than their difference.
    np.testing.assert_allclose(both[0], both[1], rtol=1e-8, atol=1e-9)


SIGMA_BAR = {"variable": "sigma_bar"}
IDENTITIES = {
    "DDIM(0) is Euler in sigma_bar": (("ddim", {}), ("euler", SIGMA_BAR)),
    "DPM-Solver-1 is DDIM": (("dpm_solver", {"order": 1}), ("ddim", {})),
    "DPM-Solver++-1 is DDIM": (("dpmpp", {"order": 1}), ("ddim", {})),
    "SDE-1(1) is ancestral": (("sde_dpmpp_1", {}), ("ancestral", {})),
    "DDIM(1) is ancestral": (("ddim", {"eta": 1.0}), ("ancestral", {})),
    "UniPC-1 without corrector is DDIM": (("unipc", {"order": 1, "corrector": False}), ("ddim", {})),
    "UniPC-1 in the noise without corrector is DDIM": (
        ("unipc", {"order": 1, "corrector": False, "prediction": "noise", "b": "bh1"}),
        ("ddim", {}),
    ),
    "UniP-2 with bh2 is DPM-Solver++ 2M": (("unipc", {"order": 2, "corrector": False}), ("dpmpp_2m", {})),
    "UniP-3 is DPM-Solver++ 3M": (("unipc", {"order": 3, "corrector": False}), ("dpmpp_3m", {"form": "taylor"})),
    "Restart without restarts is Heun": (("restart", {"repeats": (0,)}), ("heun", SIGMA_BAR)),
    "EDM without churn is Heun": (("edm", {"churn": 0.0}), ("heun", SIGMA_BAR)),
    "EDM without churn where it would be is Heun": (
        ("edm", {"churn": 5.0, "churn_min": 1e9, "churn_max": 1e10}),
        ("heun", SIGMA_BAR),
    ),
    "SDE-1(0) is DDIM": (("sde_dpmpp_1", {"eta": 0.0}), ("ddim", {})),
    "SDE-2M(0) is 2M": (("sde_dpmpp_2m", {"eta": 0.0}), ("dpmpp_2m", {})),
    "SDE-2M(0) is 2M (taylor)": (("sde_dpmpp_2m", {"eta": 0.0, "form": "taylor"}), ("dpmpp_2m", {"form": "taylor"})),
    "SDE-3M(0) is 3M": (("sde_dpmpp_3m", {"eta": 0.0}), ("dpmpp_3m", {})),
    "SDE-3M(0) is 3M (compat)": (("sde_dpmpp_3m", {"eta": 0.0, "compat": True}), ("dpmpp_3m", {"compat": True})),
    "DPM2 ancestral (0) is DPM2": (("dpm2_ancestral", {"eta": 0.0}), ("dpm2", {})),
    "DPM2 is DPM-Solver-2": (("dpm2", {}), ("dpm_solver", {"order": 2})),
    "SEEDS-2(0) is DPM-Solver++-2": (("seeds_2", {"eta": 0.0}), ("dpmpp", {"order": 2})),
    "Euler-Maruyama(0) is Euler in t": (("euler_maruyama", {"eta": 0.0}), ("euler", {})),
    "LMS-1 is DDIM": (("lms", {"order": 1}), ("ddim", {})),
    "DEIS-1 is DDIM": (("deis", {"order": 1}), ("ddim", {})),
    "SA(1, τ) is SDE-1(τ)": (
        ("sa_solver", {"predictor_order": 1, "corrector_order": 0, "tau": 0.7}),
        ("sde_dpmpp_1", {"eta": 0.7}),
    ),
    "SA(2, τ) is SDE-2M(τ)": (
        ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "tau": 0.7}),
        ("sde_dpmpp_2m", {"eta": 0.7, "form": "taylor"}),
    ),
    "SA(3, τ) is SDE-3M(τ)": (
        ("sa_solver", {"predictor_order": 3, "corrector_order": 0, "tau": 0.7}),
        ("sde_dpmpp_3m", {"eta": 0.7, "form": "taylor"}),
    ),
    "SA(2, 0) is 2M": (
        ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "tau": 0.0}),
        ("dpmpp_2m", {"form": "taylor"}),
    ),
    "SA(3, 0) is 3M": (
        ("sa_solver", {"predictor_order": 3, "corrector_order": 0, "tau": 0.0}),
        ("dpmpp_3m", {"form": "taylor"}),
    ),
    "SA without τ in reach is SA(τ = 0)": (
        ("sa_solver", {"predictor_order": 2, "corrector_order": 2, "low": 1e9, "high": 1e10}),
        ("sa_solver", {"predictor_order": 2, "corrector_order": 2, "tau": 0.0}),
    ),
}


@every_process
@pytest.mark.parametrize(("one", "other"), IDENTITIES.values(), ids=IDENTITIES)
def test_identities(one, other, sde):
    assert_same(one, other, sde)


def test_in_edms_coordinates_time_is_sigma_bar():
    for name in ("euler", "midpoint", "heun", "rk4"):
        assert_same((name, {}), (name, SIGMA_BAR), EDM())
    assert_same(("euler", {}), ("ddim", {}), EDM())
    assert_same(("edm", {}), ("heun", {}), EDM())


@pytest.mark.parametrize("predictor", sorted(set(PREDICTORS) - {"none"}))
@every_process
def test_pc_without_corrector_is_its_predictor(predictor, sde):
    """To the bit: the same matrices and the same numbers of draws; and the same run."""
    pc = solver_of("pc", {"predictor": predictor, "corrector": "none"})
    one, other = (solving.plan_of(solver, sde, times=times(sde)) for solver in (pc, PREDICTORS[predictor]))
    for ours, theirs in zip(jax.tree.leaves(one.rows.predictor), jax.tree.leaves(other.rows), strict=True):
        np.testing.assert_array_equal(ours[:STEPS], theirs[:STEPS])
    assert pc.evaluations_per_step == PREDICTORS[predictor].evaluations_per_step == 1
    assert pc.stochastic == PREDICTORS[predictor].stochastic
    assert pc.convergence == PREDICTORS[predictor].convergence
    if sde == PROCESSES["vp"]():
        denoiser, x = solving.denoiser_of(BIMODAL, sde), jnp.asarray(POINTS, jnp.float32)[:, None]
        one, other = (
            solving.compiled(solver, denoiser)(solving.plan_of(solver, sde, times=times(sde)), x, keys_of(5))
            for solver in (pc, PREDICTORS[predictor])
        )
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.evaluations, other.evaluations)


# --- Adams in λ ------------------------------------------------------------------------------------------------------


def adams_step(x: np.ndarray, t: Level, s: Level, nodes: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """x_s = σ_s/σ_t x + α_s Σ_j D_j ∫ e^{−(λ_s − λ)} ℓ_j(λ) dλ, the integrals by adaptive quadrature."""
    total = s.sigma / t.sigma * x
    for j, (position, data) in enumerate(nodes):
        others = [other for i, (other, _) in enumerate(nodes) if i != j]

        def integrand(u, position=position, others=others):
            return np.exp(u - s.lambda_t) * np.prod([(u - other) / (position - other) for other in others])

        total = total + s.alpha * scipy.integrate.quad(integrand, t.lambda_t, s.lambda_t, epsabs=1e-12)[0] * data
    return total


def adams(sde: SDE, p: int, c: int) -> np.ndarray:
    """Predictor with the last p values, corrector with c of which one is predicted; the last step is not corrected."""
    way = levels(sde)
    x = way[0].sigma * POINTS
    values = [(way[0].lambda_t, solving.bimodal(x, way[0]))]
    for n, (t, s) in enumerate(itertools.pairwise(way)):
        predicted = adams_step(x, t, s, values[:p])
        if n == len(way) - 2:
            return predicted
        new = (s.lambda_t, solving.bimodal(predicted, s))
        x = adams_step(x, t, s, [new, *values][:c]) if c else predicted
        values = [new, *values]
    raise AssertionError


@every_process
@pytest.mark.parametrize(("p", "c"), [(2, 0), (1, 2), (2, 2), (3, 3)])
def test_sa_solver_without_noise_is_adams_in_lambda(p, c, sde):
    solver = solver_of("sa_solver", {"predictor_order": p, "corrector_order": c, "tau": 0.0})
    np.testing.assert_allclose(outcome(solver, sde)[0], adams(sde, p, c), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
def test_dpm_solver_pp_2m_is_the_papers_algorithm(sde):
    """Algorithm 2 of Lu et al. 2022, written as there."""
    way = levels(sde)
    x, before, h_before = way[0].sigma * POINTS, None, None
    for t, s in itertools.pairwise(way):
        h, data = s.lambda_t - t.lambda_t, solving.bimodal(x, t)
        mixed = data if before is None else (1 + h / (2 * h_before)) * data - h / (2 * h_before) * before
        x = s.sigma / t.sigma * x - s.alpha * np.expm1(-h) * mixed
        before, h_before = data, h
    np.testing.assert_allclose(outcome(solver_of("dpmpp_2m"), sde)[0], x, rtol=1e-10)


@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
def test_sde_dpm_solver_pp_2m_is_the_papers_algorithm(sde):
    """The stochastic form of the same with η = 1: e^{−h}, 1 − e^{−2h} and σ √(1 − e^{−2h}) z."""
    way = levels(sde)
    x, before, h_before = way[0].sigma * POINTS, None, None
    for n, (t, s) in enumerate(itertools.pairwise(way)):
        h, data = s.lambda_t - t.lambda_t, solving.bimodal(x, t)
        mixed = data if before is None else (1 + h / (2 * h_before)) * data - h / (2 * h_before) * before
        x = s.sigma / t.sigma * np.exp(-h) * x - s.alpha * np.expm1(-2 * h) * mixed
        x = x + s.sigma * np.sqrt(-np.expm1(-2 * h)) * noise(n)
        before, h_before = data, h
    np.testing.assert_allclose(outcome(solver_of("sde_dpmpp_2m"), sde)[0], x, rtol=1e-10)


@pytest.mark.parametrize("name", ["dpmpp_3m", "sde_dpmpp_3m"])
@pytest.mark.parametrize("form", ["midpoint", "taylor"])
@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
def test_dpm_solver_pp_3m_as_published_codes_have_it(sde, form, name):
    """With compat and a cheap start; and the second step by `form`, midpoint in diffusers and taylor in k-diffusion.

    k-diffusion's loop (`sample_dpmpp_3m_sde`, eta = 0) in y = x/α, with h = log(σ̄_t/σ̄_s), r_0 and r_1 the lengths of
    the last two steps over h, and φ_2 = (e^{−h} − 1)/h + 1, φ_3 = φ_2/h − ½:

        y ← e^{−h} y + (1 − e^{−h}) D + φ_2 D′ − φ_3 D″,   a = (D − D_1)/r_0,   b = (D_1 − D_2)/r_1,
        D′ = a + (a − b) r_0/(r_0 + r_1),   D″ = (a − b)/(r_0 + r_1)
    """
    way = levels(sde)
    y, data, lengths = way[0].sigma * POINTS / way[0].alpha, [], []
    for t, s in itertools.pairwise(way):
        data = [solving.bimodal(t.alpha * y, t), *data][:3]
        h = np.log(t.sigma_bar / s.sigma_bar)
        y = np.exp(-h) * y - np.expm1(-h) * data[0]
        phi_2 = np.expm1(-h) / h + 1
        if len(data) == 2:
            y = y + (phi_2 if form == "taylor" else -0.5 * np.expm1(-h)) * (data[0] - data[1]) * h / lengths[0]
        if len(data) == 3:
            r_0, r_1 = lengths[0] / h, lengths[1] / h
            a, b = (data[0] - data[1]) / r_0, (data[1] - data[2]) / r_1
            y = y + phi_2 * (a + (a - b) * r_0 / (r_0 + r_1)) - (phi_2 / h - 0.5) * (a - b) / (r_0 + r_1)
        lengths = [h, *lengths]
    options = {"compat": True, "start": "cheap", "form": form} | ({"eta": 0.0} if name == "sde_dpmpp_3m" else {})
    np.testing.assert_allclose(outcome(solver_of(name, options), sde)[0], way[-1].alpha * y, rtol=1e-9, atol=1e-12)


def test_edm_with_churn_is_the_papers_algorithm():
    """Algorithm 2 of Karras et al. 2022 on σ_t = t: γ, the noise, Euler and its correction."""
    sde = EDM()
    t, churn = times(sde), 3.0
    gamma = min(churn / STEPS, np.sqrt(2) - 1)
    slope = lambda x, level: (x - solving.bimodal(x, level)) / level.t
    x, number = sde.T * POINTS, 0
    for now, after in itertools.pairwise(t):
        hat = min((1 + gamma) * now, sde.T)
        if hat > now:
            x, number = x + np.sqrt(hat**2 - now**2) * noise(number), number + 1
        here, there = Schedule.of(sde).at([hat, after])
        d = slope(x, here)
        euler = x + (after - hat) * d
        x = x + (after - hat) * 0.5 * (d + slope(euler, there))
    np.testing.assert_allclose(outcome(solver_of("edm", {"churn": churn}), sde)[0], x, rtol=1e-9)


# --- one step --------------------------------------------------------------------------------------------------------

PAIRS = [(1.0, 0.9), (0.6, 0.2), (0.3, 0.01)]  # in units of T


def one_step(solver: Solver, sde: SDE, t: float, s: float, x: np.ndarray, denoise=solving.bimodal):
    """x_s and its mean with all draws 1, and the levels."""
    plan = solving.plan_of(solver, sde, times=(t, max(s, sde.t_min)))
    done = solving.execute(plan, sde, denoise, x, lambda number: np.ones_like(x))
    return *done, *Schedule.of(sde).at([t, max(s, sde.t_min)])


@every_process
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_ancestral_is_the_exact_posterior(sde, t, s):
    """q(x_s | x_t, x_0 = D) by Bayes' rule: precisions add, of N(α_s D, σ_s²) and of the transition a x_s + G ε."""
    x_s, mean, t, s = one_step(SOLVERS["ancestral"](), sde, t * sde.T, s * sde.T, POINTS)
    a = t.alpha / s.alpha
    transition_variance = t.sigma**2 - (a * s.sigma) ** 2
    variance = 1 / (1 / s.sigma**2 + a**2 / transition_variance)
    data = solving.bimodal(POINTS, t)
    posterior = variance * (s.alpha * data / s.sigma**2 + a * POINTS / transition_variance)
    np.testing.assert_allclose(mean, posterior, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(x_s - mean, np.sqrt(variance), rtol=1e-8)


@every_process
@pytest.mark.parametrize(
    ("name", "options"),
    [("ddim", {"eta": eta}) for eta in (0.0, 0.3, 1.0)] + [("sde_dpmpp_1", {"eta": 2.0}), ("seeds_2", {})],
)
def test_the_marginal_given_x_0_is_kept(sde, name, options):
    """If D is the true x_0, then x_s ~ N(α_s x_0, σ_s²) whatever η: its variance is what it should be exactly."""
    x_0, (t, s) = 0.4, (0.6 * sde.T, 0.2 * sde.T)
    (level,) = Schedule.of(sde).at([t])
    ends = np.array([level.alpha * x_0, level.alpha * x_0 + level.sigma])  # ε = 0 and ε = 1
    solver = solver_of(name, options)
    plan = solving.plan_of(solver, sde, times=(t, s))
    run = lambda chosen: solving.execute(
        plan, sde, lambda x, level: 0 * x + x_0, ends, lambda number: np.full(2, float(number == chosen))
    )[0]
    silent = run(None)
    numbers = {int(k) for k in np.concatenate([plan.rows.noise[: plan.passes].ravel(), plan.start.noise]) if k >= 0}
    variance = (silent[1] - silent[0]) ** 2 + sum((run(k)[0] - silent[0]) ** 2 for k in numbers)
    (level,) = Schedule.of(sde).at([s])
    assert variance == pytest.approx(level.sigma**2, rel=1e-9)
    assert silent[0] == pytest.approx(level.alpha * x_0, rel=1e-9)


@pytest.mark.parametrize("sde", MILD.values(), ids=MILD)
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_reverse_diffusion_is_the_papers_discretisation(sde, t, s):
    """Eq. 46, x_i = (2 − √(1−β)) x + β score + √β z with β = 1 − α_t²/α_s², for VP; eq. 47 for VE (σ_t² − σ_s²)."""
    x_s, mean, t, s = one_step(SOLVERS["reverse_diffusion"](), sde, t * sde.T, s * sde.T, POINTS)
    score = (t.alpha * solving.bimodal(POINTS, t) - POINTS) / t.sigma**2
    if isinstance(sde, VP):
        beta = 1 - (t.alpha / s.alpha) ** 2
        expected, deviation = (2 - np.sqrt(1 - beta)) * POINTS + beta * score, np.sqrt(beta)
    else:
        square = t.sigma**2 - s.sigma**2
        expected, deviation = POINTS + square * score, np.sqrt(square)
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(x_s - mean, deviation, rtol=1e-8)
