r"""How training times are drawn.

A distribution maps u ~ U[0, 1) to t by its inverse distribution function, and gives a factor for the loss:

    uniform             t ~ U[t_min, T)                                                          factor 1
    log_normal          log σ̄ ~ N(mean, std²), between the process's ends (Karras et al. 2022)   factor 1
    logit_normal        logit(t/T) ~ N(mean, std²), from t_min on (Esser et al. 2024)            factor 1
    steps               a step of a discrete chain: the SMLD and DDPM losses                     factor 1
    importance          p(t) ∝ g²/σ² = −log_snr'(t)                                              p_uniform/p
    loss_second_moment  p(t) ∝ √E[L²] by bins of t, from past losses (Nichol & Dhariwal 2021)    p_uniform/p

The first four are part of the objective that their papers state. The last two change the variance of the uniform
objective's estimate and nothing else: the factor keeps its mean. For p ∝ −log_snr' the distribution function is linear
in log_snr, whatever the process, so t = time_of_log_snr of a uniform log_snr: a closed form, or a table for a process
that has none; and with the likelihood weighting, factor × weight is one constant.

With `low_discrepancy` the u of a batch of B are (u_0 + i/B) mod 1 with one u_0: each is uniform, together they are
spread evenly (Kingma et al. 2021, appendix I.1). A sample's time then depends on its place in the batch.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from score_sde import rng
from score_sde.errors import Checks, UserError
from score_sde.sde import SDE, Process, check_kind
from score_sde.typing import Keys, PerSample, Time

TAIL = 5.0  # standard deviations
NEWTON_STEPS = 2
LARGEST_STD = 1000.0  # of a normal much wider than its bounds, float32 has too few digits between them
CELLS = 2**23  # how many values a uniform float32 number is drawn from
CLOSEST = 3e-5  # in units of t: of so narrow a law float32, with steps of up to 5e-7, still keeps a hundredth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution(abc.ABC):
    """A distribution of times. Subclasses are final.

    processes: those that it is for.
    """

    processes: ClassVar[type] = Process

    def check(self, sde: Process) -> None:
        """Raises UserError where the process has no such times."""
        check_kind("this distribution", sde, self.processes, "use 'uniform', 'logit_normal' or 'loss_second_moment'")

    def init(self) -> Any:
        """What it remembers of the training, before it: a pytree."""
        return ()

    def update(self, state: Any, sde: Process, t: Time, loss: PerSample) -> Any:
        """What it remembers after a batch with these losses, not multiplied by the factor."""
        return state

    @abc.abstractmethod
    def __call__(self, sde: Any, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        """(t, factor) for u in [0, 1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """Settings. low_discrepancy: spread the times of a batch evenly."""

    low_discrepancy: bool = False

    def apply(self, distribution: Distribution) -> "Times":
        """Times of the distribution, drawn so."""
        return Times(distribution, self.low_discrepancy)


@dataclasses.dataclass(frozen=True)
class Times:
    """Training times: a distribution, and how the uniform numbers behind it are drawn."""

    distribution: Distribution
    low_discrepancy: bool = False

    def draw(self, sde: Process, keys: Keys, state: Any) -> tuple[Time, PerSample]:
        """(t, factor), one of each per key."""
        u = rng.uniform(keys)
        if self.low_discrepancy:
            count = u.shape[0]
            u = (u[0] + jnp.arange(count, dtype=jnp.float32) / count) % 1.0
        return self.distribution(sde, u, state)


def _between(sde: Process, share: PerSample) -> Time:
    """The time that lies `share` of the way from t_min to T."""
    return jnp.clip(sde.t_min + (sde.T - sde.t_min) * share, sde.t_min, sde.T)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Distribution):
    """U[t_min, T)."""

    def __call__(self, sde: Process, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        return _between(sde, u), jnp.ones_like(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Normal(Distribution):
    """Abstract: some function of t is normal, cut to [t_min, T]."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(math.isfinite(self.mean), f"mean must be finite, not {self.mean}")
            check.that(0 < self.std <= LARGEST_STD, f"std must lie in (0, {LARGEST_STD}], not {self.std}")

    def check(self, sde: Process) -> None:
        super().check(sde)
        quartiles = jax.jit(lambda u: self(sde, u, ())[0])(jnp.asarray([0.25, 0.75], jnp.float32))
        first, last = (float(t) for t in quartiles)
        if not last - first > CLOSEST * last:
            raise UserError(
                f"mean={self.mean:g} and std={self.std:g} put half of the times between {first:.7g} and {last:.7g}, "
                "which float32 can hardly tell apart; move the mean into the process's range, or take a larger std"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal(_Normal):
    """EDM's: log σ̄ normal, cut to the process's noise levels."""

    processes: ClassVar[type] = SDE

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, sde: SDE, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        low, high = (-0.5 * sde.log_snr(jnp.asarray(t, u.dtype)) for t in (sde.t_min, sde.T))
        log_sigma_bar = cut_normal(u, self.mean, self.std, low, high)
        t = sde.time_of_log_snr(-2 * log_sigma_bar)
        return jnp.clip(t, sde.t_min, sde.T), jnp.ones_like(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(_Normal):
    """Stable Diffusion 3's: logit(t/T) normal, from t_min on."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, sde: Process, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        share = sde.t_min / sde.T
        low = -math.inf if share == 0 else math.log(share / (1 - share))
        logit = cut_normal(u, self.mean, self.std, *(jnp.asarray(end, u.dtype) for end in (low, math.inf)))
        return jnp.clip(sde.T * jax.nn.sigmoid(logit), sde.t_min, sde.T), jnp.ones_like(u)


def cut_normal(u: PerSample, mean: Any, std: Any, low: Array, high: Array) -> PerSample:
    r"""N(mean, std²) between two bounds, by its inverse distribution function; finite for every u in [0, 1).

    In units of std from the mean, and mirrored if need be so that most of [a, b] is below 0, x is the solution of

        Φ(x) = (1 − u) Φ(a) + u Φ(b),   or of   Φ(−x) = (1 − u) Φ(−a) + u Φ(−b)   where x > 0

    In a tail, b < −5, float32 soon holds neither side. There x = b − s, with z = −b and the hazard rate h = φ(z)/Φ(−z),

        Φ(−z − s)/Φ(−z) = e^{−s (z + s/2)} h(z)/h(z + s)

    is solved for s by Newton's method, and added to the bound, which the mean may be very far from.
    """
    above, below = jnp.maximum(u, 2.0**-25), 1 - u  # neither is 0
    mirrored = low + high > 2 * mean
    share, rest = jnp.where(mirrored, below, above), jnp.where(mirrored, above, below)
    a, b = (low - mean) / std, (high - mean) / std
    a, b = jnp.where(mirrored, -b, a), jnp.where(mirrored, -a, b)

    ndtr, ndtri = jax.scipy.special.ndtr, jax.scipy.special.ndtri
    central = jnp.maximum(b, -TAIL)  # of two cases, each is given what it can take, for the sake of derivatives
    under, over = (rest * ndtr(sign * a) + share * ndtr(sign * central) for sign in (1, -1))
    x = jnp.where(under < over, ndtri(jnp.minimum(under, 0.5)), -ndtri(jnp.minimum(over, 0.5)))

    z = jnp.maximum(-b, TAIL)
    log_ratio = lambda s: jnp.log(_hazard(z) / _hazard(z + s)) - s * (z + s / 2)
    at_far = log_ratio((high - low) / std)
    wanted = -jnp.where(
        rest < 0.5,
        jnp.log1p(jnp.minimum(rest, 0.5) * jnp.expm1(at_far)),
        jnp.log(share + rest * jnp.exp(at_far)),
    )
    s = 2 * wanted / (z + jnp.sqrt(z**2 + 2 * wanted))
    for _ in range(NEWTON_STEPS):
        s = s - (-log_ratio(s) - wanted) / _hazard(z + s)
    in_tail = jnp.where(mirrored, low + std * s, high - std * s)
    in_middle = mean + std * jnp.where(mirrored, -x, x)
    return jnp.clip(jnp.where(b < -TAIL, in_tail, in_middle), low, high)


def _hazard(z: PerSample) -> PerSample:
    """φ(z)/Φ(−z) = z + 1/(z + 2/(z + 3/(z + …))) for z ≥ `TAIL`: cut after 8, it errs by 6e-9 at most."""
    result = z
    for k in range(8, 0, -1):
        result = z + k / result
    return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance(Distribution):
    """Proportional to the likelihood weight: uniform in log_snr."""

    processes: ClassVar[type] = SDE

    def check(self, sde: Process) -> None:
        super().check(sde)
        if sde.ends_in_noise:
            raise UserError("'importance' needs a finite log_snr at T, not a process that ends in pure noise")

    def __call__(self, sde: SDE, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (sde.t_min, sde.T))
        t = jnp.clip(sde.time_of_log_snr(first + (last - first) * u), sde.t_min, sde.T)
        rate = (sde.diffusion_coefficient(t) / sde.sigma(t)) ** 2
        return t, (first - last) / ((sde.T - sde.t_min) * rate)


class History(NamedTuple):
    """squares: the last losses² of each bin, a ring; counts: how many were ever seen."""

    squares: Float[Array, "bins kept"]
    counts: Int[Array, "bins"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSecondMoment(Distribution):
    """By bins of t: the root mean square of the bin's last `kept` losses, mixed with `uniform_share` of the uniform.

    Uniform until every bin has `kept`. The defaults are the paper's, with bins in place of its steps.

    A uniform u is one of 2²³ numbers, the cells. Each bin is given one of them, and a whole number of the others, in
    proportion to its probability but for rounding. The factor is that of its cells: exact for any number of bins.
    """

    bins: int = 100
    kept: int = 10
    uniform_share: float = 0.001

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(2 <= self.bins <= 100_000, f"bins must lie in [2, 1e5], not {self.bins}")
            check.that(1 <= self.kept <= 1000, f"kept must lie in [1, 1000], not {self.kept}")
            share = self.uniform_share
            check.that(0 < share <= 1, f"uniform_share must lie in (0, 1], not {share}")

    def init(self) -> History:
        return History(jnp.zeros((self.bins, self.kept), jnp.float32), jnp.zeros(self.bins, jnp.int32))

    def probabilities(self, state: History) -> Float[Array, "bins"]:
        """Of each bin, before they are rounded to whole cells."""
        root = jnp.sqrt(jnp.mean(state.squares, axis=1))
        learned = root / jnp.maximum(jnp.sum(root), jnp.finfo(jnp.float32).tiny)
        mixed = (1 - self.uniform_share) * learned + self.uniform_share / self.bins
        return jnp.where(self._ready(state), mixed, 1 / self.bins)

    def __call__(self, sde: Process, u: PerSample, state: History) -> tuple[Time, PerSample]:
        below = jax.lax.cummax(jnp.cumsum(self.probabilities(state)))  # rounding alone could make it fall
        spare = jnp.round((CELLS - self.bins) * (below / below[-1])).astype(jnp.int32)
        edges = jnp.concatenate([jnp.zeros(1, jnp.int32), spare + jnp.arange(1, self.bins + 1, dtype=jnp.int32)])
        cell = jnp.floor(u * CELLS).astype(jnp.int32)
        bin_ = jnp.searchsorted(edges, cell, side="right") - 1
        cells = (edges[bin_ + 1] - edges[bin_]).astype(u.dtype)
        inside = ((cell - edges[bin_]).astype(u.dtype) + 0.5) / cells
        share = (bin_.astype(u.dtype) + inside) / self.bins
        ready = self._ready(state)
        factor = jnp.where(ready, CELLS / (self.bins * cells), 1.0)
        return _between(sde, jnp.where(ready, share, u)), factor

    def _ready(self, state: History) -> Bool[Array, ""]:
        return jnp.all(state.counts >= self.kept) & jnp.any(state.squares > 0)

    def update(self, state: History, sde: Process, t: Time, loss: PerSample) -> History:
        bin_ = jnp.clip(((t - sde.t_min) / (sde.T - sde.t_min) * self.bins).astype(jnp.int32), 0, self.bins - 1)
        # Where in its bin's ring each loss goes: after those that came before it, earlier in this batch included.
        order = jnp.argsort(bin_, stable=True)
        ranked = bin_[order]
        rank = jnp.arange(len(bin_)) - jnp.searchsorted(ranked, ranked, side="left")
        added = jnp.zeros(self.bins, jnp.int32).at[bin_].add(1)
        newest = rank >= added[ranked] - self.kept  # of more than `kept` in one batch, the last ones
        place = jnp.where(newest, (state.counts[ranked] + rank) % self.kept, self.kept)
        squares = state.squares.at[ranked, place].set(loss[order] ** 2, mode="drop")
        return History(squares, state.counts + added)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Distribution):
    """The steps of a discrete chain, all alike."""

    def check(self, sde: Process) -> None:
        if not isinstance(sde, SDE) or sde.step_times is None:
            raise UserError("'steps' needs a process with steps of its own (ddpm, smld)")
        if not len(_steps_within(sde)):
            raise UserError(f"'steps': the process has none between t_min={sde.t_min} and T={sde.T}")

    def __call__(self, sde: SDE, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        times = jnp.asarray(_steps_within(sde), u.dtype)
        step = jnp.clip((u * len(times)).astype(jnp.int32), 0, len(times) - 1)
        return times[step], jnp.ones_like(u)


def _steps_within(sde: SDE) -> Float[np.ndarray, "steps"]:
    """The chain's times from t_min to T, which may leave some of it out."""
    times = sde.step_times
    assert times is not None  # see `Steps.check`
    margin = 1e-6 * sde.T
    return times[(times >= sde.t_min - margin) & (times <= sde.T + margin)]
