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
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from score_sde import rng
from score_sde.errors import Checks, UserError
from score_sde.sde import SDE, Process, check_kind
from score_sde.typing import Keys, PerSample, Time


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
class LogNormal(Distribution):
    """EDM's: log σ̄ normal, cut to the process's noise levels."""

    processes: ClassVar[type] = SDE

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(f"std must be positive, not {self.std}")

    def __call__(self, sde: SDE, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        ends = [-0.5 * sde.log_snr(jnp.asarray(t, u.dtype)) for t in (sde.t_min, sde.T)]
        log_sigma_bar = _cut_normal(u, *((end - self.mean) / self.std for end in ends)) * self.std + self.mean
        t = sde.time_of_log_snr(-2 * log_sigma_bar)
        return jnp.clip(t, sde.t_min, sde.T), jnp.ones_like(u)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(Distribution):
    """Stable Diffusion 3's: logit(t/T) normal, from t_min on."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(f"std must be positive, not {self.std}")

    def __call__(self, sde: Process, u: PerSample, state: Any) -> tuple[Time, PerSample]:
        share = sde.t_min / sde.T
        low = np.float32(-np.inf if share == 0 else (np.log(share / (1 - share)) - self.mean) / self.std)
        logit = _cut_normal(u, jnp.asarray(low), jnp.asarray(np.float32(np.inf))) * self.std + self.mean
        return jnp.clip(sde.T * jax.nn.sigmoid(logit), sde.t_min, sde.T), jnp.ones_like(u)


def _cut_normal(u: PerSample, low: Float[Array, ""], high: Float[Array, ""]) -> PerSample:
    """A standard normal between two bounds, by its inverse distribution function; finite for every u in [0, 1)."""
    below, above = jax.scipy.special.ndtr(low), jax.scipy.special.ndtr(high)
    middle = u + 2.0**-25  # of the interval that u stands for: never 0
    x = jax.scipy.special.ndtri(below + (above - below) * middle)
    return jnp.clip(x, jnp.maximum(low, -12), jnp.minimum(high, 12))


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
        """Of each bin."""
        root = jnp.sqrt(jnp.mean(state.squares, axis=1))
        learned = root / jnp.maximum(jnp.sum(root), jnp.finfo(jnp.float32).tiny)
        mixed = (1 - self.uniform_share) * learned + self.uniform_share / self.bins
        ready = jnp.all(state.counts >= self.kept) & (jnp.sum(root) > 0)
        return jnp.where(ready, mixed, 1 / self.bins)

    def __call__(self, sde: Process, u: PerSample, state: History) -> tuple[Time, PerSample]:
        probability = self.probabilities(state)
        edges = jnp.concatenate([jnp.zeros(1), jnp.cumsum(probability)])
        edges = edges / edges[-1]
        bin_ = jnp.clip(jnp.searchsorted(edges, u, side="right") - 1, 0, self.bins - 1)
        inside = (u - edges[bin_]) / (edges[bin_ + 1] - edges[bin_])
        share = (bin_.astype(u.dtype) + jnp.clip(inside, 0, 1)) / self.bins
        return _between(sde, share), 1 / (self.bins * probability[bin_])

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
