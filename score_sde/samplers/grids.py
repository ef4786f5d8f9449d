"""Time grids: decreasing float64 arrays of `steps + 1` times from T to t_min, built with NumPy at trace time.

Any solver takes any grid. To add one: a function here and its line in `GRIDS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.sde import SDE, Process, check_kind

Grid = Float[np.ndarray, "times"]


def uniform(sde: Process, steps: int) -> Grid:
    """Uniform in t."""
    return np.linspace(sde.T, sde.t_min, steps + 1, dtype=np.float64)


def log_snr(sde: Process, steps: int) -> Grid:
    """Uniform in λ, half the log signal-to-noise ratio (Lu et al. 2022).

    Raises UserError where there is none, or it is infinite at T.
    """
    check_kind("grid 'log_snr'", sde, SDE, "use 'uniform'")
    assert isinstance(sde, SDE)
    if sde.ends_in_noise:
        raise UserError(
            "grid 'log_snr' needs a finite log_snr at T, not a process that ends in pure noise; use 'uniform'"
        )
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        ends = sde.log_snr(jnp.asarray([sde.T, sde.t_min], jnp.float64))
        inner = sde.time_of_log_snr(jnp.linspace(ends[0], ends[1], steps + 1)[1:-1])
        return np.concatenate([[sde.T], np.asarray(inner, np.float64), [sde.t_min]])


GRIDS: dict[str, Callable[[Process, int], Grid]] = {
    "uniform": uniform,
    "log_snr": log_snr,
}
