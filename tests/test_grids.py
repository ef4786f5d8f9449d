"""Time grids: every one on every process, their ends, what each is uniform in, chains, and times of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.samplers import GRIDS, SOLVERS, Sampler, check_grid
from score_sde.samplers.schedule import Schedule
from score_sde.sde import CLD, DDPM, SMLD, VE, VP, RectifiedFlow
from tests.solving import PLAIN, every_process

SOLVER = SOLVERS["ddim"]()
OF_CHAINS = ("trailing", "leading")
BELOW_T = ("leading", "edm")  # that may begin below T
BEYOND_T_MIN = ("edm", *OF_CHAINS)  # that may end above t_min


def times(sde, grid: str, steps: int, start: float | None = None, **settings) -> np.ndarray:
    return Sampler(solver=SOLVER, grid=grid, steps=steps, **settings).times_of(sde, start)


def levels(sde, t: np.ndarray, name: str) -> np.ndarray:
    return np.array([getattr(level, name) for level in Schedule.of(sde).at(t)])


@every_process
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_grid_on_every_process(sde, grid, steps):
    """Decreasing in float32, as long as was asked for, from T to t_min: or one line that says why not."""
    if grid in OF_CHAINS:
        if sde.step_times is None:
            with pytest.raises(UserError, match="needs a process with steps of its own"):
                times(sde, grid, steps)
            return
        if steps >= len(sde.step_times):
            with pytest.raises(UserError, match=f"at most {len(sde.step_times) - 1} steps here"):
                times(sde, grid, steps)
            return
    t = times(sde, grid, steps)
    assert t.dtype == np.float64
    assert t.shape == (steps + 1,)
    assert np.all(np.diff(t.astype(np.float32)) < 0)
    assert t[0] == sde.T or (grid in BELOW_T and sde.t_min < t[0] < sde.T)
    assert t[-1] == sde.t_min or (grid in BEYOND_T_MIN and sde.t_min < t[-1] < t[0])


UNIFORM_IN = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: np.sqrt(t),
    "log_snr": lambda sde, t: levels(sde, t, "lambda_t"),
    "exponential": lambda sde, t: levels(sde, t, "lambda_t"),
    "karras": lambda sde, t: levels(sde, t, "sigma_bar") ** (1 / 7),
    "edm": lambda sde, t: levels(sde, t, "sigma_bar") ** (1 / 7),
    "cosine": lambda sde, t: np.arctan(levels(sde, t, "sigma_bar")),
}


@every_process
def test_levels_are_the_processs_own_in_float64(sde):
    """At more times than are computed at once."""
    t = np.linspace(sde.t_min, sde.T, 200)
    with jax.enable_x64(True):
        alpha, sigma, log_snr = jax.jit(lambda t: (sde.alpha(t), sde.sigma(t), sde.log_snr(t)))(jnp.asarray(t))
    np.testing.assert_allclose(levels(sde, t, "alpha"), alpha, rtol=1e-12)
    np.testing.assert_allclose(levels(sde, t, "sigma"), sigma, rtol=1e-12)
    np.testing.assert_allclose(levels(sde, t, "lambda_t"), 0.5 * np.asarray(log_snr), rtol=1e-12, atol=1e-12)


def test_each_grid_says_what_it_is_uniform_in():
    assert set(UNIFORM_IN) | set(OF_CHAINS) == set(GRIDS)


@every_process
@pytest.mark.parametrize("grid", UNIFORM_IN)
def test_grids_are_uniform_in_their_variable(sde, grid):
    steps = np.diff(UNIFORM_IN[grid](sde, times(sde, grid, 50)))
    # Tables of ddpm and the ends, which are T and t_min themselves, leave parts in 1e6; arctan near pi/2 a few more.
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-5)


@pytest.mark.parametrize("sde", [VE(), VP()], ids=["ve", "vp"])
def test_rho(sde):
    """Karras of a ρ of one's own; exponential: (log σ̄ − its least)^(1/ρ) is uniform."""
    sigma_bar = levels(sde, times(sde, "karras", 30, rho=3.0), "sigma_bar")
    np.testing.assert_allclose(np.diff(sigma_bar ** (1 / 3)), np.diff(sigma_bar ** (1 / 3)).mean(), rtol=1e-6)
    log = np.log(levels(sde, times(sde, "exponential", 30, rho=2.0), "sigma_bar"))
    root = np.sqrt(np.maximum(log - log[-1], 0))
    np.testing.assert_allclose(np.diff(root), np.diff(root).mean(), rtol=1e-5)
    np.testing.assert_allclose(times(sde, "exponential", 30), times(sde, "log_snr", 30), rtol=1e-12)


def test_karras_is_the_papers_formula():
    """Eq. 5 of Karras et al. 2022 on VE, where t is σ's logarithm up to a line."""
    sde, steps, rho = VE(sigma_min=0.01, sigma_max=50.0, t_min=0.0), 18, 7.0
    i = np.arange(steps + 1)
    low, high = 0.01 ** (1 / rho), 50.0 ** (1 / rho)
    expected = (high + i / steps * (low - high)) ** rho
    np.testing.assert_allclose(levels(sde, times(sde, "karras", steps), "sigma_bar"), expected, rtol=1e-10)


def test_edm_stays_in_its_range():
    wide = VE(sigma_min=1e-4, sigma_max=1000.0, t_min=0.0)
    ends = levels(wide, times(wide, "edm", 10), "sigma_bar")[[0, -1]]
    np.testing.assert_allclose(ends, [80.0, 0.002], rtol=1e-9)
    narrow = VE(sigma_min=0.01, sigma_max=50.0, t_min=0.0)
    np.testing.assert_array_equal(times(narrow, "edm", 10), times(narrow, "karras", 10))


# --- chains ----------------------------------------------------------------------------------------------------------

# The indices (0 to 999) at which diffusers' DDIM evaluates a chain of 1000, written by hand from its three conventions;
# `leading` of n steps ends at index 0, which is one of its n + 1 times there.
TRAILING = {1: [999], 4: [999, 749, 499, 249], 10: [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]}
LEADING = {1: [500], 3: [750, 500, 250], 9: [900, 800, 700, 600, 500, 400, 300, 200, 100]}


@pytest.mark.parametrize("sde", [DDPM(), SMLD()], ids=["ddpm", "smld"])
def test_grids_of_chains_are_diffusers(sde):
    for grid, known in (("trailing", TRAILING), ("leading", LEADING)):
        for steps, index in known.items():
            np.testing.assert_array_equal(times(sde, grid, steps), sde.step_times[[*index, 0]])
    for steps in (3, 7, 30, 600):  # diffusers' own expressions
        trailing = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
        np.testing.assert_array_equal(times(sde, "trailing", steps), sde.step_times[[*trailing, 0]])
        leading = (np.arange(0, steps + 1) * (1000 // (steps + 1)))[::-1]
        np.testing.assert_array_equal(times(sde, "leading", steps), sde.step_times[leading])


@pytest.mark.parametrize("steps", [500, 667, 700, 998, 999])
def test_chains_take_every_number_of_steps_that_they_have(steps):
    """Rounding sends no two steps to one time, and the last one to its own."""
    sde = DDPM()
    for grid in OF_CHAINS:
        t = times(sde, grid, steps)
        index = np.rint(t * 1000).astype(int)
        assert np.all(np.diff(index) < 0)
        assert index[-1] == 1
    np.testing.assert_array_equal(times(sde, "trailing", 999), sde.step_times[::-1])
    np.testing.assert_array_equal(times(sde, "leading", 999), sde.step_times[::-1])


def test_chains_of_other_lengths():
    np.testing.assert_allclose(
        times(DDPM(steps=10, t_min=0.1, beta_max=5.0), "trailing", 5), [1, 0.8, 0.6, 0.4, 0.2, 0.1]
    )
    np.testing.assert_allclose(times(DDPM(steps=10, t_min=0.1, beta_max=5.0), "leading", 4), [0.9, 0.7, 0.5, 0.3, 0.1])


# --- partial ranges, and times of one's own --------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_from_a_later_start(sde, grid):
    if grid in OF_CHAINS and sde.step_times is None:
        return
    start = 0.5 * sde.T if sde.step_times is None else float(sde.step_times[len(sde.step_times) // 2])
    t = times(sde, grid, 8, start)
    assert t[0] == pytest.approx(start)
    assert len(t) == 9
    assert np.all(np.diff(t.astype(np.float32)) < 0)


BEGIN_BELOW = [
    (DDPM(), "leading", 0.5003, [0.5003, 0.401, 0.301, 0.201, 0.101, 0.001]),
    (DDPM(), "trailing", 0.5003, [0.5003, 0.5, 0.375, 0.25, 0.125, 0.001]),
    (DDPM(), "leading", 1.0, [1.0, 0.801, 0.601, 0.401, 0.201, 0.001]),
    (VE(sigma_max=1000.0), "edm", 0.95, None),
]


@pytest.mark.parametrize(("sde", "grid", "start", "known"), BEGIN_BELOW)
def test_a_start_that_is_given_is_where_the_grid_begins(sde, grid, start, known):
    """Where the grid by itself would begin lower, with a step from the start to there."""
    t = times(sde, grid, 5, start)
    assert t[0] == start
    assert len(t) == 6
    if known is not None:
        np.testing.assert_allclose(t, known, atol=1e-9)
    else:
        assert levels(sde, t[1:2], "sigma_bar")[0] == pytest.approx(80)
    np.testing.assert_array_equal(times(sde, grid, 1, start), [start, t[-1]])


@pytest.mark.parametrize("start", [1.1, 0.0, -1.0, float("nan")])
def test_a_start_outside_is_refused(start):
    with pytest.raises(UserError, match="must start in"):
        times(VP(), "uniform", 5, start)


def test_times_of_ones_own():
    mine = (1.0, 0.7, 0.65, 0.1)
    np.testing.assert_array_equal(times(VP(), "karras", 50, times=mine), mine)
    np.testing.assert_array_equal(times(VP(), "karras", 50, 0.68, times=mine), [0.68, 0.65, 0.1])
    np.testing.assert_array_equal(times(VP(), "karras", 50, 0.7, times=mine), [0.7, 0.65, 0.1])
    np.testing.assert_array_equal(times(VP(), "karras", 50, times=(0.7, 0.1)), [0.7, 0.1])
    with pytest.raises(UserError, match=r"start at 0\.8, and times begin at 0\.7, below it"):
        times(VP(), "karras", 50, 0.8, times=(0.7, 0.1))


@pytest.mark.parametrize("grid", [[1.0], [0.1, 1.0], [1.0, 0.5, 0.5, 0.1], [1.0, 1.0 - 1e-12], [1.0, float("nan")]])
def test_bad_grids_are_refused(grid):
    with pytest.raises(UserError, match="grid"):
        check_grid(np.array(grid))
    with pytest.raises(UserError, match="grid"):
        times(VP(), "uniform", 5, times=tuple(grid))


@pytest.mark.parametrize("mine", [(2.0, 0.5), (1.0, 0.0), (float("inf"), 0.5)])
def test_times_outside_are_refused(mine):
    with pytest.raises(UserError, match="times must lie in"):
        times(VP(), "uniform", 5, times=mine)


@pytest.mark.parametrize(
    "settings", [{"grid": "unifrom"}, {"last": "men"}, {"steps": 0}, {"rho": -1.0}, {"rho": float("nan")}]
)
def test_bad_sampler_settings_are_refused(settings):
    with pytest.raises(UserError, match=str(next(iter(settings.values())))):
        Sampler(solver=SOLVER, **settings)


IN_LAMBDA = ("log_snr", "exponential", "karras", "edm", "cosine")
FROM_NOISE = RectifiedFlow(T=1.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_from_pure_noise(grid):
    """Those in λ say that they cannot, but for EDM's, which begins at σ̄ = 80."""
    sde = FROM_NOISE
    if grid in OF_CHAINS:
        return
    if grid in IN_LAMBDA and grid != "edm":
        with pytest.raises(UserError, match="finite log_snr at T"):
            times(sde, grid, 10)
        return
    t = times(sde, grid, 10)
    assert len(t) == 11
    assert t[0] == sde.T or levels(sde, t[:1], "sigma_bar")[0] == pytest.approx(80)


def test_augmented_processes_have_the_uniform_grid_alone():
    assert len(times(CLD(), "uniform", 4)) == 5
    for grid in set(GRIDS) - {"uniform", "quadratic"}:
        with pytest.raises(UserError, match="use 'uniform'"):
            times(CLD(), grid, 4)


def test_every_process_is_here():
    assert {name for name in PLAIN if PLAIN[name].step_times is not None} == {"ddpm", "smld"}
