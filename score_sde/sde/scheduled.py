r"""What the processes that are given by their log_snr share.

A curve of `sde.curves` and a decreasing function log_snr(t) make a process: (α, σ) is the curve's point at log_snr(t).

The inverse has no closed form. It is read from a table of log_snr at `NODES` times and improved by Newton's method: no
bisection, a fixed and small cost, and differentiable, since the last Newton step has the derivative of the inverse.
The table's times are crowded towards both ends, where a log_snr may be logarithmic.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from score_sde.sde.base import SDE, Times
from score_sde.sde.curves import CURVES

NODES = 1024
NEWTON_STEPS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled(SDE):
    """Abstract: a process states log_snr and its curve."""

    curve: ClassVar[str]

    @abc.abstractmethod
    def schedule(self, t: Times) -> Times:
        """log_snr(t), decreasing."""

    def log_snr(self, t: Times) -> Times:
        return self.schedule(t)

    def alpha(self, t: Times) -> Times:
        return CURVES[self.curve].point(self.schedule(t))[0]

    def sigma(self, t: Times) -> Times:
        return CURVES[self.curve].point(self.schedule(t))[1]

    def time_of_log_snr(self, log_snr: Times) -> Times:
        times = jnp.asarray(self._nodes(), log_snr.dtype)
        table = -self.schedule(times)  # increasing
        upper = jnp.clip(jnp.searchsorted(table, -log_snr), 1, NODES - 1)
        margin = 1e-6 * (self.T - self.t_min)  # so that rounding at the two ends is inverted too
        low, high = times[upper - 1], times[upper]
        gap = jnp.maximum(table[upper] - table[upper - 1], jnp.finfo(table.dtype).tiny)
        share = (-log_snr - table[upper - 1]) / gap
        t = jax.lax.stop_gradient(low + jnp.clip(share, 0, 1) * (high - low))
        for _ in range(NEWTON_STEPS):
            t = jax.lax.stop_gradient(t)
            value, slope = jax.jvp(self.schedule, (t,), (jnp.ones_like(t),))
            t = jnp.clip(t - (value - log_snr) / slope, low - margin, high + margin)
        return t

    def _nodes(self) -> Float[np.ndarray, "nodes"]:
        """Times from t_min to T: geometric from each end to the middle."""
        middle = 0.5 * (self.t_min + self.T)
        reach = middle - self.t_min
        steps = np.geomspace(max(self.t_min, 1e-6 * self.T), reach + max(self.t_min, 1e-6 * self.T), NODES // 2)
        steps = (steps - steps[0]) / (steps[-1] - steps[0]) * reach
        return np.concatenate([self.t_min + steps, (self.T - steps[::-1][1:]), [self.T]])
