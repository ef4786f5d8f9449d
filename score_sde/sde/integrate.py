r"""Adaptive integration of an ODE, every sample with step sizes of its own.

One `diffrax` solve per sample under `vmap`, of Tsitouras' 5(4) pair unless another is named: a sample's result does not
depend on the batch that it is in. Local error is controlled in the root-mean-square norm of one sample's state. Steps
are of the whole interval's length times a power of `RATIO`, so that what a program rounds otherwise for another batch
changes no step, but for the rare one on the edge between two lengths, or between accepted and rejected.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

METHODS: dict[str, Callable[[], diffrax.AbstractRungeKutta]] = {
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "kvaerno5": diffrax.Kvaerno5,  # implicit: solves equations of the state's size at every stage
}
IMPLICIT = frozenset({"kvaerno5"})  # whose Newton iterations `diffrax` does not count
FIRST_STEP = 0.01  # of the interval; a first step that is too long is rejected and shortened


RATIO = 2**0.25  # of lengths of steps; less than a rejected step is shortened by


class _Steps(diffrax.AbstractAdaptiveStepSizeController):
    """A controller of steps of few lengths, that counts the attempts at the first one, the accepted one included."""

    rtol: Any  # the controller's, from which an implicit method takes its own
    atol: Any
    norm: Any
    controller: diffrax.PIDController

    def wrap(self, direction):
        return dataclasses.replace(self, controller=self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        t_next, state = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t_next, (state, jnp.zeros((), jnp.int32), jnp.zeros((), bool), jnp.abs(t1 - t0))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        state, attempts, started, whole = controller_state
        attempts = attempts + jnp.where(started, 0, 1)
        keep, start, end, jump, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        power = jnp.round(jnp.log((end - start) / whole) / math.log(RATIO))
        end = start + whole * RATIO**power
        return keep, start, end, jump, (state, attempts, started | keep, whole), result


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
    method: str = "tsit5",
    most_growth: float = 10.0,
    max_steps: int = 4096,
) -> Solution:
    """Integrates dy/dt = vector_field(t, y, arguments) from t_0 to t_1 (either order).

    y_0 and arguments have a leading batch axis; vector_field sees one sample. method: a row of `METHODS`.
    most_growth: of a step from one to the next. A sample that needs more than max_steps steps, or turns non-finite,
    comes back as NaN and `failed`. Of an implicit method an evaluation is counted a stage; those of
    Newton's iterations and of its Jacobian come on top.
    """
    # "First same as last": an attempted step takes its first stage from the step before. Before any step was accepted
    # there is none before: each attempt at the first step evaluates all stages.
    solver = METHODS[method]()
    tableau = solver.tableau
    assert isinstance(tableau, diffrax.ButcherTableau)
    stages = tableau.num_stages - int(tableau.fsal)
    controller = diffrax.PIDController(rtol=rtol, atol=atol, factormax=most_growth)

    def solve(y, args):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field),
            solver,
            t0=t_0,
            t1=t_1,
            dt0=FIRST_STEP * (t_1 - t_0),
            y0=y,
            args=args,
            stepsize_controller=_Steps(rtol, atol, controller.norm, controller),
            saveat=diffrax.SaveAt(t1=True, controller_state=True),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        last = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        failed = solution.result != diffrax.RESULTS.successful
        finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), last))
        last = jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf), last)
        _, first_attempts, _, _ = solution.controller_state
        evaluations = stages * solution.stats["num_steps"] + int(tableau.fsal) * first_attempts
        return Solution(last, evaluations, failed | ~finite)

    return jax.vmap(solve)(y_0, arguments)
