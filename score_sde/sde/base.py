r"""Affine Gaussian noise processes.

    x_t = α_t x_0 + σ_t ε,   ε ~ N(0, I)                      (marginal)
    dx  = f(t) x dt + g(t) dw                                 (the SDE that has it)
    f   = d log α_t / dt
    g²  = dσ_t²/dt − 2 f σ_t² = −σ_t² d log_snr / dt          (log_snr = 2 log(α_t/σ_t))

Time runs from data (t = t_min) to noise (t = T). A process states α, σ and the inverse of log_snr in a
form that is stable in float32 on [t_min, T]; everything else is inherited. Every method takes a time of
any shape and is evaluated elementwise; methods that also take a state take `(batch,)` times.

A process may end in pure noise, α_T = 0 (zero terminal signal-to-noise ratio): log_snr is −∞ at T then, f and g are
infinite there, and the velocity of the probability-flow ODE stays finite.

Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021;
the log_snr form of g: Kingma et al., "Variational Diffusion Models", 2021.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_sde import rng
from score_sde.errors import Checks, UserError
from score_sde.typing import Data, Keys, PerSample, Time

Times = Float[Array, "*times"]


def expand(t: PerSample, like: Data) -> Array:
    """`t` with trailing axes of length 1, so that it multiplies a batch of samples."""
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def gauss(function: Callable[[Times], Times], start: Times, end: Times, *, nodes: int) -> Times:
    """∫ function from start to end, elementwise, by Gauss's rule; one call of `function`, with an axis more.

    What the nodes lose by rounding is made up for to first order: an end may have few float32 numbers between itself
    and a singularity of `function`, and the other end be the next of them.
    """
    positions, weights = (
        jnp.asarray(values, start.dtype).reshape((nodes,) + (1,) * start.ndim)
        for values in np.polynomial.legendre.leggauss(nodes)
    )
    half = 0.5 * (end - start)
    offset = (1 + positions) * half[None]
    node = start[None] + offset
    value, slope = jax.jvp(function, (node,), (jnp.ones_like(node),))
    lost = offset - (node - start[None])
    return half * jnp.sum(weights * (value + slope * lost), axis=0)


@jax.custom_jvp
def one_minus_exp(x: Times) -> Times:
    """1 − e^{−x}. Its derivative is e^{−x} to full precision; that of `expm1` is e^x taken from e^x − 1."""
    return -jnp.expm1(-x)


one_minus_exp.defjvps(lambda dx, _, x: jnp.exp(-x) * dx)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process(abc.ABC):
    """A noise process, whatever its state is: the data, or the data beside something else.

    t_min: the smallest time, where sampling ends and training begins. T: the largest.
    """

    kind: ClassVar[str]  # what processes of this kind are called in messages

    t_min: float
    T: float

    @abc.abstractmethod
    def check_float32(self) -> None:
        """Raises UserError where float32 does not hold the process's coefficients at t_min and T."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing at all of the data is left at T."""
        return False

    @property
    def learned(self) -> bool:
        """Whether the process has parameters that are trained with the network."""
        return False

    def init(self) -> Any:
        """The learned parameters before training, nothing for most processes.

        A learned one has `{"ends": …, "shape": …}`: what sets log_snr at t_min and T, and what sets it in between.
        """
        return {}

    def bind(self, params: Any) -> Self:
        """The process at learned parameters `params`; at those of `init` where it is None."""
        return self

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the state of data of this shape, both without or both with a batch."""
        return shape

    def data_of(self, state: Data) -> Data:
        """The part of a state that is data."""
        return state

    @abc.abstractmethod
    def sigma(self, t: Times) -> Times:
        """σ_t, the standard deviation of the noise that ε̂ estimates."""

    @abc.abstractmethod
    def diffusion_coefficient(self, t: Times) -> Times:
        """g(t) of the part of the state that the process gives noise to."""

    @abc.abstractmethod
    def prior_sample(self, keys: Keys, shape: tuple[int, ...]) -> Data:
        """States at T, one per key, for data of `shape`."""

    @abc.abstractmethod
    def prior_log_prob(self, state: Data) -> PerSample:
        """Their log density in nats, `(batch,)`."""


def check_kind(what: str, process: Process, kind: Any, hint: str) -> None:
    """Raises UserError unless the process is of the kind, a class, that `what` is for. hint: what would be right."""
    if not isinstance(process, kind):
        raise UserError(f"{what} is for {kind.kind}, not {process.kind}; {hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDE(Process):
    """An affine Gaussian noise process. Raises UserError where 0 ≤ t_min < T does not hold."""

    kind: ClassVar[str] = "affine processes (such as vp)"
    curve: ClassVar[str]  # a row of `CURVES`, where (α, σ) lie

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.T:
            raise UserError(f"t_min and T must satisfy 0 <= t_min < T, not t_min={self.t_min}, T={self.T}")
        self.check()

    def check(self) -> None:
        """Raises UserError where the process's own parameters make no sense."""
        return

    def check_float32(self) -> None:
        t = jnp.asarray([self.t_min, self.T], jnp.float32)
        coefficients = {
            "alpha": self.alpha(t),
            "sigma": self.sigma(t),
            "log_snr": self.log_snr(t),
            "f": self.drift_coefficient(t),
            "g": self.diffusion_coefficient(t),
        }
        with Checks() as check:
            for name, values in jax.device_get(coefficients).items():
                sound = np.isfinite(values) & ((values > 0) | (name in ("f", "log_snr")))
                if self.ends_in_noise:
                    sound[1] = not np.isnan(values[1])
                for where, value, good in zip(("t_min", "T"), values, sound, strict=True):
                    check.that(bool(good), f"{name} is {value} in float32 at {where}={getattr(self, where)}")

    @property
    def ends_in_noise(self) -> bool:
        """Whether α_T = 0: nothing of the data is left at T. Of a learned process at first, which is known ahead."""
        process = self.bind(None) if self.learned else self
        with jax.ensure_compile_time_eval():
            return float(process.alpha(jnp.asarray(self.T, jnp.float32))) == 0

    @property
    def step_times(self) -> Float[np.ndarray, "steps"] | None:
        """The times of the discrete chain that the process is at them, increasing, in float64; None where it is none.

        They make `times: steps` the papers' discrete losses, and published checkpoints mean the same.
        """
        return None

    def step_label(self, t: Times) -> Times:
        """The number by which the networks of the chain are told the time t: an integer at the chain's times."""
        raise UserError("the process has no steps of its own (ddpm and smld have)")

    @abc.abstractmethod
    def alpha(self, t: Times) -> Times:
        """α_t, the scale of the data."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> Times:
        """σ_t, the standard deviation of the noise."""

    @abc.abstractmethod
    def time_of_log_snr(self, log_snr: Times) -> Times:
        """The inverse of `log_snr`."""

    def log_snr(self, t: Times) -> Times:
        """2 λ_t = log(α_t² / σ_t²)."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def sigma_bar(self, t: Times) -> Times:
        """σ̄_t = σ_t / α_t, the noise level in variance-exploding coordinates."""
        return self.sigma(t) / self.alpha(t)

    def drift_coefficient(self, t: Times) -> Times:
        """f(t) = d log α_t / dt."""
        return _derivative(lambda time: jnp.log(self.alpha(time)), t)

    def diffusion_coefficient(self, t: Times) -> Times:
        """g(t) = σ_t √(−d log_snr / dt)."""
        return self.sigma(t) * jnp.sqrt(-_derivative(self.log_snr, t))

    def alpha_derivative(self, t: Times) -> Times:
        """dα_t/dt."""
        return _derivative(self.alpha, t)

    def sigma_derivative(self, t: Times) -> Times:
        """dσ_t/dt."""
        return _derivative(self.sigma, t)

    def drift(self, x_t: Data, t: Time) -> Data:
        """f(t) x_t."""
        return expand(self.drift_coefficient(t), x_t) * x_t

    def diffusion(self, x_t: Data, t: Time) -> Array:
        """g(t), with trailing axes so that it multiplies `x_t`."""
        return expand(self.diffusion_coefficient(t), x_t)

    def marginal(self, x_0: Data, t: Time) -> tuple[Data, Array]:
        """Mean `(batch, *shape)` and standard deviation `(batch, 1, …)` of x_t given x_0."""
        return expand(self.alpha(t), x_0) * x_0, expand(self.sigma(t), x_0)

    def log_snr_change(self, s: Times, t: Times) -> Times:
        """log_snr_t − log_snr_s for s ≤ t, at most 0, without the cancellation of a difference of near-equal numbers.

        Over a short step it is the integral of d log_snr/dt, by Gauss's rule with 5 nodes (its relative error is below
        1e-9 where log_snr changes by less than ½, log_snr being at worst logarithmic in t or in T − t).
        """
        direct = self.log_snr(t) - self.log_snr(s)
        integral = gauss(lambda time: _derivative(self.log_snr, time), s, t, nodes=5)
        return jnp.where(direct > -0.5, integral, direct)

    def transition_coefficients(self, s: Times, t: Times) -> tuple[Times, Times]:
        """(a, G) with x_t = a x_s + G ε for s ≤ t:  a = α_t/α_s,  G² = σ_t² (1 − e^{log_snr_t − log_snr_s})."""
        scale = self.alpha(t) / self.alpha(s)
        std = self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr_change(s, t)))
        same = s == t  # also where α = 0 and log_snr = −∞
        return jnp.where(same, 1.0, scale), jnp.where(same, 0.0, std)

    def transition(self, x_s: Data, s: Time, t: Time) -> tuple[Data, Array]:
        """Mean `(batch, *shape)` and standard deviation `(batch, 1, …)` of x_t given x_s, s ≤ t. Exact."""
        scale, std = self.transition_coefficients(s, t)
        return expand(scale, x_s) * x_s, expand(std, x_s)

    def prior_sample(self, keys: Keys, shape: tuple[int, ...]) -> Data:
        """x_T ~ N(0, σ_T² I), one per key."""
        return self._prior_std() * rng.normal(keys, shape)

    def prior_log_prob(self, x: Data) -> PerSample:
        """log N(x; 0, σ_T² I) in nats, `(batch,)`."""
        flat = x.reshape(x.shape[0], -1)
        std = self._prior_std()
        log_normaliser = flat.shape[1] * (0.5 * math.log(2 * math.pi) + jnp.log(std))
        return -0.5 * jnp.sum((flat / std) ** 2, axis=1) - log_normaliser

    def _prior_std(self) -> Float[Array, ""]:
        return self.sigma(jnp.asarray(self.T, jnp.float32))


def _derivative(function, t: Times) -> Times:
    """d function / dt of an elementwise function."""
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
