"""One battery over every distribution of times: its law, its factor and what it remembers."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from score_sde import rng
from score_sde.errors import UserError
from score_sde.losses import TIMES, Times
from score_sde.losses.times import cut_normal
from score_sde.sde import AUGMENTED, DDPM, PROCESSES, SMLD, Options
from tests import levels

NAMES = sorted(PROCESSES)
CHAINS = {"ddpm": DDPM(), "smld": SMLD(scales=10)}
FITS = [(name, times) for name in NAMES for times in TIMES if times != "steps" or name in CHAINS]
battery = pytest.mark.parametrize(("name", "times"), FITS)
EVEN = (np.arange(4096) + 0.5) / 4096  # an even grid of u: the distribution function is a sharper test than draws
LAST = 1 - 2.0**-24  # the largest u below 1 that float32 holds


def process(name):
    return CHAINS.get(name) or levels.process(name)


def remembered(distribution, sde, scale=4.0):
    """What is remembered of losses that grow as e^{scale t}: every bin is full."""
    state = distribution.init()
    if state == ():
        return state
    t = sde.t_min + (sde.T - sde.t_min) * (jnp.arange(distribution.bins, dtype=float) + 0.5) / distribution.bins
    loss = jnp.exp(scale * (t - sde.t_min) / (sde.T - sde.t_min))
    for _ in range(distribution.kept):
        state = distribution.update(state, sde, t, loss)
    return state


@functools.cache
def _drawn(name, times):
    """(t, factor) on the even grid of u, and at its two ends."""
    sde, distribution = process(name), TIMES[times]()
    state = remembered(distribution, sde)
    draw = jax.jit(lambda u: distribution(sde, u, state))
    u = jnp.asarray(np.concatenate([EVEN, [0.0, LAST]]), jnp.float32)
    return tuple(np.asarray(values, np.float64) for values in draw(u))


def log_snr(sde, t):
    return np.log(levels.at(sde, np.atleast_1d(t)).snr)


def _normal_cut(low, high):
    """The distribution function of a standard normal between two bounds."""
    return lambda x: scipy.stats.truncnorm.cdf(x, low, high)


def cdf(sde, times):
    """The exact distribution function of t, in float64, by SciPy."""
    share = lambda t: (t - sde.t_min) / (sde.T - sde.t_min)
    if times == "uniform":
        return share
    if times == "log_normal":
        standard = lambda t: (-log_snr(sde, t) / 2 + 1.2) / 1.2
        cut = _normal_cut(standard(sde.t_min)[0], standard(sde.T)[0])
        return lambda t: cut(standard(t))
    if times == "logit_normal":
        with np.errstate(divide="ignore"):
            logit = lambda t: scipy.special.logit(t / sde.T)
            cut = _normal_cut(logit(sde.t_min), np.inf)
            return lambda t: cut(logit(t))
    if times == "importance":
        first, last = log_snr(sde, [sde.t_min, sde.T])
        return lambda t: (first - log_snr(sde, t)) / (first - last)
    if times == "loss_second_moment":
        # 100 bins, of the root of the mean square of losses e^{4 (bin's middle)}, and a share 0.001 of all alike.
        root = np.exp(4 * (np.arange(100) + 0.5) / 100)
        edges = np.concatenate([[0], np.cumsum(0.999 * root / root.sum() + 0.001 / 100)])
        return lambda t: np.interp(share(t), np.arange(101) / 100, edges)
    raise AssertionError(times)


@battery
def test_times_lie_in_the_process_for_every_u(name, times):
    sde = process(name)
    t, factor = _drawn(name, times)
    assert np.all((t >= np.float32(sde.t_min)) & (t <= np.float32(sde.T)))
    assert np.all(np.isfinite(factor) & (factor > 0))
    assert np.all(np.diff(np.concatenate([t[-2:-1], t[:-2], t[-1:]])) >= 0)  # the inverse distribution function rises


@pytest.mark.parametrize(("name", "times"), [(name, times) for name, times in FITS if times != "steps"])
def test_the_law_is_exact(name, times):
    """Kolmogorov's distance of the even grid's times from the law; half a cell of the grid would be 1.2e-4."""
    sde = process(name)
    t = _drawn(name, times)[0][: len(EVEN)]
    inside = np.clip(t, sde.t_min, sde.T)
    with np.errstate(divide="ignore"):
        distance = np.abs(cdf(sde, times)(inside) - EVEN).max()
    # float32 holds log_snr to 1e-6 and tails of a normal, 1 − u, to 6e-8: far below a cell.
    assert distance < 1.2e-4


@pytest.mark.parametrize(
    ("name", "times", "mean", "std"),
    [
        *(("edm", "log_normal", mean, std) for mean in (-50.0, -12.0, 8.0, 50.0) for std in (0.5, 1.2, 30.0)),
        ("edm", "log_normal", 0.0, 1000.0),
        *(("rectified_flow", "logit_normal", mean, std) for mean, std in ((-50.0, 0.5), (-12.0, 1.0), (6.0, 0.5))),
    ],
)
def test_the_law_of_a_normal_is_exact_however_far_from_its_bounds(name, times, mean, std):
    """Kolmogorov's distance again. log σ̄ lies in [−6.2, 4.4], logit(t/T) above −6.9: 90 standard deviations away."""
    sde, distribution = PROCESSES[name](), TIMES[times](mean=mean, std=std)
    distribution.check(sde)
    t, _ = jax.jit(lambda u: distribution(sde, u, ()))(jnp.asarray([*EVEN, 0.0, LAST], jnp.float32))
    t = np.clip(np.asarray(t, np.float64), sde.t_min, sde.T)
    value = np.log if times == "log_normal" else lambda t: scipy.special.logit(t / sde.T)
    with np.errstate(divide="ignore"):
        low, high = ((value(end) - mean) / std for end in (sde.t_min, sde.T))
        law = scipy.stats.truncnorm.cdf((value(t) - mean) / std, low, high)
    assert np.abs(law - [*EVEN, 0.0, LAST]).max() < 1.2e-4


def test_a_normal_has_a_derivative_in_its_bounds():
    """They are learned where the process is. By finite differences in float64; at the extreme u, too."""
    mean, u = (values.reshape(-1) for values in np.meshgrid([-1.2, 8.0, 30.0, -40.0], [0.0, 0.3, 0.9, LAST]))
    ends, h = np.tile([[-6.0], [4.0]], len(u)), 1e-5
    drawn = jax.jit(lambda ends, mean, u: cut_normal(u, mean, 1.2, *ends))
    total = jax.jit(jax.grad(lambda *arguments: drawn(*arguments).sum()))
    found = total(*(jnp.asarray(values, jnp.float32) for values in (ends, mean, u)))
    with jax.enable_x64(True):
        steps = [ends + sign * h * np.eye(2)[:, [end]] for end in (0, 1) for sign in (1, -1)]
        low_up, low_down, high_up, high_down = (np.asarray(drawn(step, mean, u)) for step in steps)
    expected = np.stack([low_up - low_down, high_up - high_down]) / (2 * h)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_every_step_of_a_chain_is_as_likely(name):
    sde = CHAINS[name]
    steps = len(sde.step_times)
    u = (np.arange(20 * steps) + 0.5) / (20 * steps)
    t, factor = TIMES["steps"]()(sde, jnp.asarray(u, jnp.float32), ())
    found = collections.Counter(np.asarray(t).tolist())
    assert sorted(found) == np.asarray(sde.step_times, np.float32).tolist()
    assert set(found.values()) == {20}
    assert np.all(np.asarray(factor) == 1)


@battery
def test_the_factor_keeps_the_mean_or_is_1(name, times):
    """Of importance and loss_second_moment it is p_uniform/p, p by central differences of the exact law."""
    sde = process(name)
    t, factor = (values[: len(EVEN)] for values in _drawn(name, times))
    if times not in ("importance", "loss_second_moment"):
        np.testing.assert_array_equal(factor, 1)
        return
    h = 1e-6 * (sde.T - sde.t_min)
    inside = (t > sde.t_min + 2 * h) & (t < sde.T - 2 * h)
    if times == "loss_second_moment":  # p jumps at the edges of the bins
        place = (t - sde.t_min) / (sde.T - sde.t_min) * 100
        inside &= np.abs(place - np.round(place)) > 0.01
    t, factor = t[inside], factor[inside]
    law = cdf(sde, times)
    p = (law(t + h) - law(t - h)) / (2 * h)
    # The difference of two values of a function of size 1 errs by 1e-16/1e-6 of its slope's scale, and the curvature
    # of a law that changes over t ≥ 0.02 by h²/t²; the rest is float32. Of past losses, the least likely bin has 7.5e-4
    # of 2²³ values of u, and one more or less is 1.6e-4 of them.
    rtol = 2e-4 if times == "loss_second_moment" else 1e-4
    np.testing.assert_allclose(factor, 1 / ((sde.T - sde.t_min) * p), rtol=rtol)


@pytest.mark.parametrize("times", ["uniform", "log_normal", "logit_normal"])
def test_drawn_from_keys_they_have_the_law(times):
    sde = PROCESSES["edm"]()
    keys = rng.for_samples(rng.stream(0, "time"), jnp.arange(4000))
    t, _ = Times(TIMES[times]()).draw(sde, keys, ())
    assert scipy.stats.kstest(np.clip(np.asarray(t, np.float64), sde.t_min, sde.T), cdf(sde, times)).pvalue > 1e-3


def test_low_discrepancy_puts_one_in_each_part():
    """Of B parts of [0, 1) each has one u, at the same place in it up to rounding; that place is a batch's own."""
    sde, count, starts = PROCESSES["vp"](t_min=0.5, T=1.5), 64, set()
    for batch in range(20):
        keys = rng.for_samples(rng.at_step(rng.stream(0, "time"), batch), jnp.arange(count))
        t, factor = Times(TIMES["uniform"](), low_discrepancy=True).draw(sde, keys, ())
        u = np.sort(np.asarray(t, np.float64) - 0.5) * count
        np.testing.assert_array_equal(np.floor(u), np.arange(count))
        np.testing.assert_allclose(u - np.floor(u), u[0], atol=1e-5)
        starts.add(float(u[0]))
        assert np.all(np.asarray(factor) == 1)
    assert scipy.stats.kstest(list(starts), "uniform").pvalue > 1e-3
    assert len(starts) == 20


# --- what is remembered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 3, 10])
def test_the_history_is_a_ring_for_each_bin(kept):
    """Against one deque a bin; the first batches put far more than `kept` into one bin at once."""
    sde, distribution = PROCESSES["vp"](t_min=0.0 + 1e-3), TIMES["loss_second_moment"](bins=5, kept=kept)
    generator = np.random.default_rng(0)
    rings, counts = [collections.deque(maxlen=kept) for _ in range(5)], np.zeros(5, int)
    state, update = distribution.init(), jax.jit(lambda s, t, loss: distribution.update(s, sde, t, loss))
    for number in range(30):
        crowd = generator.uniform(size=40) ** (6 if number < 3 else 1)
        share = np.clip(crowd, 1e-3, 0.999)
        loss = generator.normal(size=40).astype(np.float32)
        t = (sde.t_min + (sde.T - sde.t_min) * share).astype(np.float32)
        state = update(state, jnp.asarray(t), jnp.asarray(loss))
        for each, value in zip(np.floor(share * 5).astype(int), loss, strict=True):
            rings[each].append(value**2)
            counts[each] += 1
        np.testing.assert_array_equal(state.counts, counts)
        for each, ring in enumerate(rings):
            held = np.sort(np.asarray(state.squares[each]))[kept - len(ring) :]
            np.testing.assert_allclose(held, np.sort(ring), rtol=1e-6)
        ready = all(len(ring) == kept for ring in rings)
        probabilities = np.asarray(distribution.probabilities(state), np.float64)
        if not ready:
            np.testing.assert_allclose(probabilities, 1 / 5, rtol=1e-6)
        else:
            root = np.array([np.sqrt(np.mean(ring)) for ring in rings])
            np.testing.assert_allclose(probabilities, 0.999 * root / root.sum() + 0.001 / 5, rtol=1e-5)
    assert ready


@pytest.mark.parametrize(("bins", "scale"), [(10_000, 4.0), (100_000, 40.0)])
def test_the_estimate_by_past_losses_is_unbiased_for_any_number_of_bins(bins, scale):
    """Over every u there is: the mean of factor · f(t) is that of f over uniform times, and each bin is drawn as often
    as it claims to be. At the scale 40 nearly all of the bins have their share of the uniform alone, 1e-8 each."""
    sde, distribution = PROCESSES["vp"](t_min=0.5, T=1.5), TIMES["loss_second_moment"](bins=bins, kept=1)
    state = remembered(distribution, sde, scale)
    u = np.arange(2**23, dtype=np.float32) / 2**23
    drawn = jax.jit(lambda u, state: distribution(sde, u, state))(u, state)
    t, factor = (np.asarray(values, np.float64) for values in drawn)
    assert np.mean(factor) == pytest.approx(1, rel=1e-7)  # the rounding of 2²³/(bins · cells)
    # Each bin is an average over evenly spaced times, of which there may be one: its error is f''/24 of bins².
    assert np.mean(factor * np.exp(-3 * t)) == pytest.approx((np.exp(-1.5) - np.exp(-4.5)) / 3, rel=1e-6 + 1 / bins**2)
    bin_ = np.minimum(np.floor((t - 0.5) * bins).astype(int), bins - 1)
    counts = np.bincount(bin_, minlength=bins)
    probability = np.asarray(distribution.probabilities(state), np.float64)
    assert counts.min() >= 1
    # Of 2²³ values of u each bin has one ahead, 1.2 % of all with 1e5 bins; and a time near an edge, of 1e-5 between
    # them, may round into the next bin, by 1.2e-7.
    assert np.abs(counts / 2**23 - probability).max() < 0.03 * probability.max() + 4 / 2**23
    np.testing.assert_allclose(np.bincount(bin_, factor / 2**23, bins), 1 / bins, rtol=0.05)


def test_losses_of_zero_leave_the_times_uniform():
    sde, distribution = PROCESSES["vp"](), TIMES["loss_second_moment"](bins=4, kept=2)
    t = jnp.repeat(jnp.linspace(0.1, 0.9, 4), 2)
    state = distribution.update(distribution.init(), sde, t, jnp.zeros(8))
    np.testing.assert_allclose(distribution.probabilities(state), 0.25, rtol=1e-6)


def test_a_uniform_share_is_kept():
    """Where one bin has all the loss, the others still have their share."""
    sde, distribution = PROCESSES["vp"](), TIMES["loss_second_moment"](bins=4, kept=2, uniform_share=0.2)
    t, loss = jnp.repeat(jnp.linspace(0.1, 0.9, 4), 2), jnp.repeat(jnp.asarray([0.0, 7.0, 0.0, 0.0]), 2)
    state = distribution.update(distribution.init(), sde, t, loss)
    np.testing.assert_allclose(distribution.probabilities(state), [0.05, 0.85, 0.05, 0.05], rtol=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_times_that_a_process_does_not_have():
    ended = Options(zero_terminal_snr=True).apply(PROCESSES["vp"]())
    with pytest.raises(UserError, match="'importance' needs a finite log_snr at T"):
        TIMES["importance"]().check(ended)
    with pytest.raises(UserError, match=r"'steps' needs a process with steps of its own \(ddpm, smld\)"):
        TIMES["steps"]().check(PROCESSES["vp"]())
    for times in TIMES:
        TIMES[times]().check(PROCESSES["ddpm"]())
        if times not in ("importance", "steps"):
            TIMES[times]().check(ended)
            t, factor = TIMES[times]()(ended, jnp.asarray([0.0, 0.5, LAST]), TIMES[times]().init())
            assert np.all(np.isfinite(t) & np.isfinite(factor)), times


@pytest.mark.parametrize(
    ("times", "settings"),
    [
        ("log_normal", {"std": 0.0}),
        ("log_normal", {"std": 1001.0}),
        ("log_normal", {"mean": float("inf")}),
        ("logit_normal", {"mean": float("nan")}),
        ("logit_normal", {"std": -1.0}),
        ("loss_second_moment", {"bins": 1}),
        ("loss_second_moment", {"kept": 0}),
        ("loss_second_moment", {"uniform_share": 0.0}),
        ("loss_second_moment", {"uniform_share": 1.5}),
    ],
)
def test_bad_settings_are_refused(times, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} must"):
        TIMES[times](**settings)


@pytest.mark.parametrize(
    ("name", "times", "settings"),
    [
        ("edm", "log_normal", {"mean": 1e6}),
        ("edm", "log_normal", {"mean": -1e30}),
        ("edm", "log_normal", {"std": 1e-5}),
        ("rectified_flow", "logit_normal", {"mean": 20.0}),  # where t rounds to T
        ("cld", "logit_normal", {"std": 1000.0}),
    ],
)
def test_a_normal_of_times_that_float32_does_not_tell_apart_is_refused(name, times, settings):
    with pytest.raises(UserError, match=r"half of the times between .* float32 can hardly tell apart"):
        TIMES[times](**settings).check({**PROCESSES, **AUGMENTED}[name]())


def test_steps_stay_between_t_min_and_the_end():
    sde = DDPM(steps=100, t_min=0.1, T=0.5)
    t, _ = TIMES["steps"]()(sde, jnp.asarray(EVEN, jnp.float32), ())
    np.testing.assert_allclose([t.min(), t.max(), len(np.unique(t))], [0.1, 0.5, 41], rtol=1e-6)
    with pytest.raises(UserError, match=r"the process has none between t_min=0.101 and T=0.109"):
        TIMES["steps"]().check(DDPM(steps=100, t_min=0.101, T=0.109))
