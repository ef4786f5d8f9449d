r"""Adaptive integration of an ODE, every sample with step sizes of its own.

One `diffrax` solve of Tsitouras' 5(4) pair per sample under `vmap`: a sample's result does not depend on
the batch that it is in. Local error is controlled in the root-mean-square norm of one sample's state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

STAGES = 6  # Tsit5 is "first same as last": 7 stages, 6 new evaluations an attempted step
START = 2  # one evaluation at the start and one to choose the first step's size


class Solution(NamedTuple):
    """y: the state at t1, a pytree with a leading batch axis. evaluations, failed: one per sample."""

    y: Any
    evaluations: Int[Array, "batch"]
    failed: Bool[Array, "batch"]


def integrate(
    vector_field: Callable[[Any, Any, Any], Any],
    y_0: Any,
    arguments: Any,
    t_0: Float[Array, ""] | float,
    t_1: Float[Array, ""] | float,
    *,
    rtol: float,
    atol: float,
    max_steps: int = 4096,
) -> Solution:
    """Integrates dy/dt = vector_field(t, y, arguments) from t_0 to t_1 (either order).

    y_0 and arguments have a leading batch axis; vector_field sees one sample. A sample that needs more than
    max_steps steps, or turns non-finite, comes back as NaN and `failed`.
    """

    def solve(y, args):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),
            diffrax.Tsit5(),
            t0=t_0,
            t1=t_1,
            dt0=None,
            y0=y,
            args=args,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        last = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        failed = solution.result != diffrax.RESULTS.successful
        finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), last))
        last = jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf), last)
        return Solution(last, START + STAGES * solution.stats["num_steps"], failed | ~finite)

    return jax.vmap(solve)(y_0, arguments)
