r"""Options of any affine process: a shift of its log_snr for the resolution, and zero terminal signal-to-noise ratio.

**Shift** by s: the noise level σ̄ = σ/α is multiplied by s at every t, and (α, σ) stay on the process's curve,

    log_snr ← log_snr − 2 log s,   (α, σ) ← (α, s σ)/c(α, s σ)        (c: the curve's norm, see `sde.curves`)

On the variance-preserving curve this is "simple diffusion" (s = resolution/64), on the line that of Stable Diffusion 3,
t ← s t/(1 + (s − 1) t).

**Zero terminal SNR**: with the normalised a = α/ρ, ρ = √(α² + σ²), which is √ᾱ of a variance-preserving process,

    a ← a_min (a − a_T)/(a_min − a_T),   α ← ρ a,   σ ← ρ √(1 − a²)   (a_min: a at t_min)

so that nothing of the data is left at T and ρ is as before. It comes after the shift. Then log_snr is −∞ at T.

Source: Hoogeboom, Heek & Salimans, "Simple Diffusion", 2023; Esser et al., "Scaling Rectified Flow Transformers", 2024,
sec. 5.3.2; Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed", 2024, algorithm 1.
"""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from score_sde.errors import UserError
from score_sde.sde.base import SDE, Process, Times, check_kind
from score_sde.sde.curves import CURVES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings. shift: the factor on the noise level. zero_terminal_snr: whether to end in pure noise."""

    shift: float = 1.0
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"shift must be positive, not {self.shift}")

    def apply(self, sde: Process) -> Process:
        """`sde` with the options. Raises UserError where it cannot have them."""
        if self == Options():
            return sde
        check_kind("shift or zero_terminal_snr", sde, SDE, "leave them out")
        assert isinstance(sde, SDE)
        if self.shift != 1:
            sde = Shifted(base=sde, shift=self.shift, t_min=sde.t_min, T=sde.T)
        if self.zero_terminal_snr:
            sde = ZeroTerminalSNR(base=sde, t_min=_float32(sde.t_min), T=_float32(sde.T))
        return sde


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Changed(SDE):
    """Abstract: a process made from another one."""

    base: SDE

    @property
    def step_times(self) -> Float[np.ndarray, "steps"] | None:
        return self.base.step_times

    def step_label(self, t: Times) -> Times:
        return self.base.step_label(t)

    @property
    def learned(self) -> bool:
        return self.base.learned

    def init(self) -> Any:
        return self.base.init()

    def bind(self, params: Any) -> Self:
        return dataclasses.replace(self, base=self.base.bind(params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(_Changed):
    """`base` with `shift` times its noise level. See the module."""

    shift: float

    @property
    def curve(self) -> str:  # type: ignore[override]
        return self.base.curve

    def alpha(self, t: Times) -> Times:
        return self.base.alpha(t) / self._norm(t)

    def sigma(self, t: Times) -> Times:
        return self.shift * self.base.sigma(t) / self._norm(t)

    def drift_coefficient(self, t: Times) -> Times:
        """Along the curve: of the quotient above, the derivatives would cancel where the shift is small."""
        log_snr, rate = jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))
        return CURVES[self.curve].log_alpha_slope(log_snr) * rate

    def time_of_log_snr(self, log_snr: Times) -> Times:
        return self.base.time_of_log_snr(log_snr + 2 * math.log(self.shift))

    def _norm(self, t: Times) -> Times:
        return CURVES[self.curve].norm(self.base.alpha(t), self.shift * self.base.sigma(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(_Changed):
    r"""`base` ending in pure noise. See the module.

    log a = −½ softplus(−log_snr). With L_t = log a_t − log a_T the new α is α_t (1 − e^{−L_t})/(1 − e^{−L_min}).
    Differences are formed without cancellation: near T, L from the change d of log_snr,

        L_t = −½ log(1 + sigmoid(−log_snr_T) (e^{−d} − 1)),   d = log_snr_t − log_snr_T

    and 1 − a² from what is lost, δ = (a_min − a_t)/(a_min − a_T), as (1 − a_min²) + a_min² δ (2 − δ).
    """

    def check(self) -> None:
        if self.base.ends_in_noise:
            raise UserError("zero_terminal_snr: the process ends in pure noise already; leave it out")

    def alpha(self, t: Times) -> Times:
        return self.base.alpha(t) * jnp.expm1(-self._above_end(t)) / jnp.expm1(-self._ends(t)[2])

    def sigma(self, t: Times) -> Times:
        noise_min = jax.nn.sigmoid(-self._ends(t)[0])
        lost = self._lost(t)
        rho = jnp.hypot(self.base.alpha(t), self.base.sigma(t))
        return rho * jnp.sqrt(noise_min + (1 - noise_min) * lost * (2 - lost))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        at_min, _, above_end = self._ends(log_snr)
        noise_min = jax.nn.sigmoid(-at_min)
        a_min, a_new = jnp.sqrt(1 - noise_min), jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr))
        # a_min − a_new from 1 − a², which both have to full precision; then back to the base's a, and to 1 − a².
        lost_new = (jax.nn.sigmoid(-log_snr) - noise_min) / (a_min + a_new)
        lost = lost_new * -jnp.expm1(-above_end)  # a_min − a = lost_new (a_min − a_T)/a_min
        noise = noise_min + lost * (2 * a_min - lost)
        return self.base.time_of_log_snr(2 * jnp.log(a_min - lost) - jnp.log(noise))

    def _ends(self, like: Times) -> tuple[Times, Times, Times]:
        """The base's log_snr at t_min and at T, and L at t_min: known ahead, unless the base is being learned."""
        with jax.ensure_compile_time_eval():
            at_min, at_end = (self.base.log_snr(jnp.asarray(t, like.dtype)) for t in (self.t_min, self.T))
            return at_min, at_end, 0.5 * (jax.nn.log_sigmoid(at_min) - jax.nn.log_sigmoid(at_end))

    def _above_end(self, t: Times) -> Times:
        """L_t."""
        _, at_end, _ = self._ends(t)
        change = -self.base.log_snr_change(t, jnp.full_like(t, self.T))
        far = 0.5 * (jax.nn.log_sigmoid(self.base.log_snr(t)) - jax.nn.log_sigmoid(at_end))
        near = -0.5 * jnp.log1p(jax.nn.sigmoid(-at_end) * jnp.expm1(-jnp.minimum(change, 1.0)))
        return jnp.where(change < 1, near, far)

    def _lost(self, t: Times) -> Times:
        """δ: 0 at t_min, 1 at T."""
        at_min, _, above_end = self._ends(t)
        below_start = 0.5 * (jax.nn.log_sigmoid(self.base.log_snr(t)) - jax.nn.log_sigmoid(at_min))
        return jnp.expm1(below_start) / jnp.expm1(-above_end)


def _float32(time: float) -> float:
    """The time that float32 holds, so that α is exactly 0 there in any precision."""
    return float(np.float32(time))
