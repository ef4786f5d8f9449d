r"""A process from any decreasing log_snr(t) that a user gives, on the curve that a user names.

    α_t, σ_t = the point of the curve at log_snr(t);   see `sde.curves`

In a config the function is text, as in `sde.formula`; in Python it may be any function of t made of jax operations.
The default is the cosine schedule of "Simple Diffusion" at the base resolution, log_snr = −2 log tan(πt/2), written
with sines so that float32 loses no digits at either end.

Source: Kingma et al., "Variational Diffusion Models", 2021, sec. 3; Hoogeboom et al., "Simple Diffusion", 2023.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import Checks, UserError
from score_sde.sde.base import Times
from score_sde.sde.curves import CURVES
from score_sde.sde.formula import Formula
from score_sde.sde.scheduled import Scheduled

COSINE = Formula("2 * log(sin(pi * (1 - t) / 2)) - 2 * log(sin(pi * t / 2))")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromLogSNR(Scheduled):
    """The process with the given log_snr. See the module. Raises UserError where it does not decrease on [t_min, T]."""

    function: Formula | Callable[[Times], Times] = COSINE
    curve: str = "vp"  # type: ignore[misc]  # the choice of a config, not of the class
    t_min: float = 1e-3
    T: float = 0.999

    def check(self) -> None:
        with Checks() as check:
            check.name("curve", self.curve, CURVES)
        try:
            with jax.ensure_compile_time_eval():
                times = jnp.asarray(self._nodes(), jnp.float32)
                result = self.schedule(times)
                if jnp.shape(result) != times.shape or jnp.asarray(result).dtype != times.dtype:
                    raise TypeError("it must return as many numbers as it is given times, of the same type")
                values = np.asarray(result, np.float64)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise UserError(f"function cannot be computed: {error}") from error
        if not np.all(np.isfinite(values)):
            where = self._nodes()[np.flatnonzero(~np.isfinite(values))[0]]
            raise UserError(f"function, the log_snr, is not finite at t={where:.6g}; it must be on [t_min, T]")
        rising = np.flatnonzero(np.diff(values) > 1e-6 * np.abs(values).max())
        if len(rising) or values[-1] >= values[0]:
            where = self._nodes()[rising[0]] if len(rising) else self.t_min
            raise UserError(f"function, the log_snr, must decrease in t; it does not at t={where:.6g}")

    def schedule(self, t: Times) -> Times:
        return self.function(t)
