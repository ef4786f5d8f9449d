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
from score_sde.sde.scheduled import NODES, Scheduled

COSINE = Formula("2 * log(sin(pi * (1 - t) / 2)) - 2 * log(sin(pi * t / 2))")


TIME_ERROR = 1e-4  # of T − t_min: a tenth of a step where there are 1,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromLogSNR(Scheduled):
    """The process with the given log_snr. See the module.

    Raises UserError where it does not decrease on [t_min, T], or so slowly that t, taken from log_snr in float32, is
    wrong by more than `TIME_ERROR` of T − t_min.
    """

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
                slopes = np.asarray(jax.jvp(self.schedule, (times,), (jnp.ones_like(times),))[1])
        except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise UserError(f"function cannot be computed: {error}") from error
        where = lambda wrong: f"t={self._nodes()[np.flatnonzero(wrong)[0]]:.6g}"
        if not np.all(np.isfinite(values)):
            raise UserError(
                f"function, the log_snr, is not finite at {where(~np.isfinite(values))}; it must be on [t_min, T]"
            )
        rising = np.diff(values, append=-np.inf) > 1e-6 * np.abs(values).max()
        if np.any(rising):
            raise UserError(f"function, the log_snr, must decrease in t; it does not at {where(rising)}")
        wrong = ~(slopes < 0)
        if np.any(wrong):
            slope = f"{slopes[wrong][0] + 0.0:g}"  # 0, not -0
            raise UserError(f"function, the log_snr, must decrease in t; its derivative is {slope} at {where(wrong)}")
        self._check_inverse()

    def _check_inverse(self) -> None:
        """At times between those of the inverse's table, which it holds exactly."""
        count = 4 * (NODES - 1)
        inner = np.interp((np.arange(count) + 0.5) / 4, np.arange(NODES), self._nodes()).astype(np.float32)
        with jax.ensure_compile_time_eval():
            back = np.asarray(jax.jit(lambda t: self.time_of_log_snr(self.schedule(t)))(jnp.asarray(inner)))
        error = np.nan_to_num(np.abs(back - inner) / (self.T - self.t_min), nan=1.0)  # 0/0 of a Newton step
        if not error.max() < TIME_ERROR:
            worst = int(np.argmax(error))
            raise UserError(
                f"function, the log_snr, is nearly flat at t={inner[worst]:.6g}: in float32, t is known from it to "
                f"{error[worst]:.1g} of T - t_min only, and must be to {TIME_ERROR:g}; make it steeper there"
            )

    def schedule(self, t: Times) -> Times:
        return self.function(t)
