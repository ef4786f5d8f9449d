r"""What a solver is, and the loop that drives it.

A solver takes x_t to x_s, s < t, knowing a denoiser and its process. The loop is one `lax.scan` over the
steps of a grid; the rule for what is returned after the last step is explicit:

    none      the state the last step left (with its noise, if the solver is stochastic)
    mean      the last step's mean: the state without the noise that the last step added
    denoise   D(x_{t_min}, t_min) of the last state, at one more evaluation
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from score_sde import rng
from score_sde.denoiser import Denoiser
from score_sde.errors import Checks, UserError
from score_sde.sde import SDE, Process, check_kind
from score_sde.typing import Data, Keys, Time

LAST_STEPS = ("none", "mean", "denoise")


class Carry(NamedTuple):
    """What a solver hands from one step to the next, all with a leading batch axis.

    x: the state. mean: the state without the last step's noise. evaluations: of the denoiser so far.
    failed: where an adaptive solver gave up. memory: whatever else the solver keeps, a pytree.
    """

    x: Data
    mean: Data
    evaluations: Int[Array, "batch"]
    failed: Bool[Array, "batch"]
    memory: Any = ()


class Samples(NamedTuple):
    """x: the samples, data of the states that the solver left. evaluations: network evaluations spent on each.

    failed: where the solver gave up, or x is not finite.
    """

    x: Data
    evaluations: Int[Array, "batch"]
    failed: Bool[Array, "batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC):
    """One step rule of a reverse-time process. Subclasses are final.

    order: of convergence, strong for ODE solvers and weak for stochastic ones. evaluations_per_step: None
    where it depends on the sample. processes: those that it runs on; its denoisers are of that kind.
    """

    order: ClassVar[int]
    processes: ClassVar[type] = SDE

    denoiser: Denoiser

    @property
    @abc.abstractmethod
    def stochastic(self) -> bool:
        """Whether steps draw noise."""

    @property
    @abc.abstractmethod
    def evaluations_per_step(self) -> int | None:
        """Evaluations of the denoiser that one step costs; None where it depends on the sample."""

    def check_process(self, sde: Process) -> None:
        """Raises UserError where the solver cannot run on the process. The denoiser is not looked at."""
        hint = "use euler_maruyama, pc, ddim, ode, …" if isinstance(sde, SDE) else "use sscs, sscs_midpoint or ode"
        check_kind("this solver", sde, self.processes, hint)

    def init(self, x_T: Data, grid: Float[np.ndarray, "times"]) -> Carry:
        """The carry before the first step."""
        batch = x_T.shape[0]
        return Carry(x_T, x_T, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))

    @abc.abstractmethod
    def step(self, carry: Carry, t: Time, s: Time, key: Keys) -> Carry:
        """From t to s < t, both `(batch,)` and equal across it; key draws this step's noise, one per sample."""


def advance(carry: Carry, x: Data, mean: Data, evaluations: Int[Array, "batch"] | int) -> Carry:
    """The carry after a step that left x, had mean `mean` and spent `evaluations`."""
    return carry._replace(x=x, mean=mean, evaluations=carry.evaluations + evaluations)


def check_grid(grid: Float[np.ndarray, "times"], dtype: Any = np.float32) -> Float[np.ndarray, "times"]:
    """The grid in `dtype`. Raises UserError unless it has two times or more, decreasing and distinct in it."""
    times = np.asarray(grid, dtype)
    if len(times) < 2 or not np.all(np.diff(times) < 0):
        raise UserError(f"a grid needs two times or more that {np.dtype(dtype)} tells apart; take fewer steps")
    return times


def run(solver: Solver, x_T: Data, grid: Float[np.ndarray, "times"], keys: Keys, *, last: str = "none") -> Samples:
    """Drives `solver` along `grid` from x_T. Traceable; one scan.

    grid: decreasing float64 times of at least two entries, from `samplers.grids`. keys: one per sample.
    Raises UserError for an unknown `last` or a grid that does not decrease.
    """
    with Checks() as check:
        check.name("last-step rule", last, LAST_STEPS)
    times = check_grid(grid, x_T.dtype)
    ones = jnp.ones(x_T.shape[0], x_T.dtype)

    def body(carry: Carry, step):
        t, s, number = step
        return solver.step(carry, t * ones, s * ones, rng.child(keys, number)), None

    steps = (jnp.asarray(times[:-1]), jnp.asarray(times[1:]), jnp.arange(len(times) - 1))
    carry, _ = jax.lax.scan(body, solver.init(x_T, grid), steps)
    x, evaluations = solver.denoiser.sde.data_of(carry.mean if last == "mean" else carry.x), carry.evaluations
    if last == "denoise":
        x, evaluations = solver.denoiser(carry.x, times[-1] * ones), evaluations + 1
    finite = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
    return Samples(x, evaluations, carry.failed | ~finite)
