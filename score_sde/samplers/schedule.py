r"""The levels of a process in float64, as solvers and grids see it.

A solver's coefficients are functions of the levels that it visits, which are known before anything runs. They are
computed here on the host in float64, and only the finished coefficients are rounded to the state's precision.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from score_sde.sde import SDE

Numbers = Float[np.ndarray, "points"]
CHUNK = 128  # levels are computed this many at a time, so that one compilation serves every number of steps


class Level(NamedTuple):
    """One time of an affine process: x_t = α x_0 + σ ε, dx = f x dt + g dw."""

    t: float
    alpha: float
    sigma: float
    lambda_t: float  # λ = log(α/σ); −∞ where α = 0
    f: float
    g: float
    alpha_derivative: float
    sigma_derivative: float

    @property
    def sigma_bar(self) -> float:
        """σ̄ = σ/α."""
        return self.sigma / self.alpha if self.alpha else math.inf


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A process's levels. Of one with learned parameters those must be bound, and known."""

    sde: SDE

    @staticmethod
    def of(sde: SDE) -> "Schedule":
        """Shared between calls for the same process; of a learned one, which equals itself at other parameters, for
        the very same object.
        """
        return _shared(_Same(sde) if sde.learned else sde)

    def at(self, times: Any) -> list[Level]:
        """The levels at some times."""
        times = np.asarray(times, np.float64)
        alpha, sigma, log_snr, *rates = on_host(self._levels, times, 7)
        rows = zip(times, alpha, sigma, 0.5 * log_snr, *rates, strict=True)
        return [Level(*map(float, row)) for row in rows]

    def at_lambda(self, lambdas: Any) -> list[Level]:
        """The levels at some λ."""
        return self.at(self.times(lambdas))

    def at_sigma_bar(self, sigma_bars: Any) -> list[Level]:
        """The levels at some σ̄."""
        return self.at_lambda(-np.log(sigma_bars))

    def times(self, lambdas: Any) -> Numbers:
        """The times at some λ."""
        (times,) = on_host(self._times, 2 * np.asarray(lambdas, np.float64), 1)
        return times

    def inside(self, levels: list[Level], *shares: float) -> list[list[Level]]:
        """For each step between successive levels, those at the `shares` of its way in λ."""
        starts = np.array([level.lambda_t for level in levels])
        lambdas = starts[:-1, None] + np.asarray(shares) * np.diff(starts)[:, None]
        flat = self.at_lambda(lambdas.ravel())
        return [flat[i : i + len(shares)] for i in range(0, len(flat), len(shares))]

    @functools.cached_property
    def _levels(self) -> Any:
        sde = self.sde
        parts = (sde.alpha, sde.sigma, sde.log_snr, sde.drift_coefficient, sde.diffusion_coefficient)
        derivatives = (sde.alpha_derivative, sde.sigma_derivative)
        return jax.jit(lambda t: tuple(part(t) for part in (*parts, *derivatives)))

    @functools.cached_property
    def _times(self) -> Any:
        return jax.jit(lambda log_snr: (self.sde.time_of_log_snr(log_snr),))


class _Same:
    """A process that equals itself alone."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.sde is other.sde

    def __hash__(self) -> int:
        return id(self.sde)


@functools.lru_cache(maxsize=64)
def _shared(key: "SDE | _Same") -> Schedule:
    return Schedule(key.sde if isinstance(key, _Same) else key)


def on_host(function: Any, points: Numbers, outputs: int) -> list[Numbers]:
    """function(points) in float64 on the CPU, in chunks."""
    results: list[list[np.ndarray]] = [[] for _ in range(outputs)]
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(cpu):
        for start in range(0, len(points), CHUNK):
            chunk = points[start : start + CHUNK]
            filled = np.concatenate([chunk, np.full(CHUNK - len(chunk), chunk[-1])])
            for result, values in zip(results, function(jnp.asarray(filled)), strict=True):
                result.append(np.asarray(values, np.float64)[: len(chunk)])
    return [np.concatenate(result) if result else np.zeros(0) for result in results]


def transition(s: Level, t: Level) -> tuple[float, float]:
    """(a, G) with x_t = a x_s + G ε, s the smaller time:  a = α_t/α_s,  G² = σ_t² (1 − e^{−2(λ_s − λ_t)})."""
    return t.alpha / s.alpha, t.sigma * math.sqrt(-math.expm1(-2 * (s.lambda_t - t.lambda_t)))
