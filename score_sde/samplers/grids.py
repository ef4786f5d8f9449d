r"""Time grids: decreasing float64 arrays of `steps + 1` times, built with NumPy on the host.

    uniform       t
    log_snr       λ = log(α/σ); "logSNR" of DPM-Solver, "exponential" (geometric in σ̄) of k-diffusion
    exponential   −λ is σ̄'s logarithm: log σ̄_i = log σ̄_min + u^ρ (log σ̄_max − log σ̄_min), k-diffusion's polyexponential;
                  ρ = 1, its own, is `log_snr`; times near the end come as close as u^ρ does
    karras        σ̄^{1/ρ}, ρ = 7 by default (Karras et al. 2022, eq. 5)
    edm           the same over EDM's range alone, σ̄ from 80 to 0.002, or the process's where that is narrower
    quadratic     √t (Song, Meng & Ermon 2021)
    cosine        arctan σ̄, in which iDDPM's cosine process is uniform
    trailing      every so-many-th of a chain's steps, counted from its last (Lin et al. 2024)
    leading       the same counted from its first, as DDIM's code does: it begins below T, by up to a step

where each is uniform in the named variable, u from 1 to 0, from T or where sampling is to begin, to t_min. Two times
are never the same and the last is never lost: the ends are set, not computed. A grid of one's own is `times` of a
sampler.

Any solver takes any grid. To add one: a function here and its line in `GRIDS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from score_sde.errors import UserError
from score_sde.samplers.base import Grid
from score_sde.samplers.schedule import Schedule
from score_sde.sde import SDE, Process, check_kind

EDM_RANGE = (0.002, 80.0)  # of σ̄
OWN_RHO = {"karras": 7.0, "edm": 7.0, "exponential": 1.0}


class Span(NamedTuple):
    """What a grid is made for: a process, the times between, the number of steps, and ρ where the grid has one."""

    sde: Process
    start: float
    end: float
    steps: int
    rho: float

    @property
    def ramp(self) -> Grid:
        """From 1 to 0."""
        return np.linspace(1.0, 0.0, self.steps + 1, dtype=np.float64)


def uniform(span: Span) -> Grid:
    """Uniform in t."""
    return np.linspace(span.start, span.end, span.steps + 1, dtype=np.float64)


def quadratic(span: Span) -> Grid:
    """Uniform in √t."""
    inner = np.linspace(np.sqrt(span.start), np.sqrt(span.end), span.steps + 1)[1:-1] ** 2
    return np.concatenate([[span.start], inner, [span.end]])


def log_snr(span: Span) -> Grid:
    """Uniform in λ."""
    return _in_lambda(span, "log_snr", lambda low, high: low + span.ramp * (high - low))


def exponential(span: Span) -> Grid:
    """Polyexponential in σ̄."""
    return _in_lambda(span, "exponential", lambda low, high: low + span.ramp**span.rho * (high - low))


def karras(span: Span) -> Grid:
    """Uniform in σ̄^{1/ρ}."""

    def log_sigma_bar(low: float, high: float) -> Grid:  # of the largest, so that no power overflows
        share = np.exp((low - high) / span.rho)
        return high + span.rho * np.log(share + span.ramp * (1 - share))

    return _in_lambda(span, "karras", log_sigma_bar)


def edm(span: Span) -> Grid:
    """`karras` over EDM's range."""
    sde = _affine(span, "edm")
    start, end = (level.lambda_t for level in Schedule.of(sde).at([span.start, span.end]))
    low, high = (-np.log(sigma_bar) for sigma_bar in EDM_RANGE)
    first, last = Schedule.of(sde).times([max(start, high), min(end, low)])
    start_time = span.start if start >= high else float(first)
    return karras(span._replace(start=start_time, end=span.end if end <= low else float(last)))


def cosine(span: Span) -> Grid:
    """Uniform in arctan σ̄."""

    def log_sigma_bar(low: float, high: float) -> Grid:
        angle = np.arctan(np.exp(low)) + span.ramp * (np.arctan(np.exp(high)) - np.arctan(np.exp(low)))
        return np.log(np.tan(angle))

    return _in_lambda(span, "cosine", log_sigma_bar)


def trailing(span: Span) -> Grid:
    """A chain's steps counted from its last."""
    chain = _chain(span, "trailing")
    index = np.round(np.linspace(len(chain), 0, span.steps, endpoint=False)).astype(int) - 1
    index = np.maximum(index, np.arange(span.steps, 0, -1))  # with nearly all of the steps, rounding comes down early
    return np.concatenate([chain[index], chain[:1]])


def leading(span: Span) -> Grid:
    """A chain's steps counted from its first."""
    chain = _chain(span, "leading")
    return chain[np.arange(span.steps, -1, -1) * (len(chain) // (span.steps + 1))]


def _affine(span: Span, name: str) -> SDE:
    check_kind(f"grid {name!r}", span.sde, SDE, "use 'uniform'")
    assert isinstance(span.sde, SDE)
    return span.sde


def _in_lambda(span: Span, name: str, log_sigma_bar: Callable[[float, float], Grid]) -> Grid:
    """The times of log σ̄, given the smallest and the largest; the two ends are the span's own."""
    schedule = Schedule.of(_affine(span, name))
    start, end = schedule.at([span.start, span.end])
    if np.isinf(start.lambda_t):
        raise UserError(
            f"grid {name!r} needs a finite log_snr at T, not a process that ends in pure noise; use 'uniform'"
        )
    inner = log_sigma_bar(-end.lambda_t, -start.lambda_t)[1:-1]
    return np.concatenate([[span.start], schedule.times(-inner) if len(inner) else inner, [span.end]])


def _chain(span: Span, name: str) -> Grid:
    """The times of the chain that lie in the span."""
    chain = _affine(span, name).step_times
    if chain is None:
        raise UserError(f"grid {name!r} needs a process with steps of its own (ddpm, smld)")
    rounding = 1e-6 * span.sde.T
    chain = chain[(chain >= span.end - rounding) & (chain <= span.start + rounding)]
    if span.steps > len(chain) - 1:
        raise UserError(f"grid {name!r} has at most {len(chain) - 1} steps here, one less than the chain")
    return chain


GRIDS: dict[str, Callable[[Span], Grid]] = {
    "uniform": uniform,
    "log_snr": log_snr,
    "exponential": exponential,
    "karras": karras,
    "edm": edm,
    "quadratic": quadratic,
    "cosine": cosine,
    "trailing": trailing,
    "leading": leading,
}
