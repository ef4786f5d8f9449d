r"""The learned schedule of variational diffusion models, on the variance-preserving curve.

    γ(t) = −log_snr(t) = γ_0 + (γ_1 − γ_0) (h(τ) − h(0))/(h(1) − h(0)),   τ = (t − t_min)/(T − t_min)
    h(τ) = w_1 τ + Σ_j  w_3j sigmoid(w_2j τ + b_2j),   every w > 0

h is a monotone network, so log_snr decreases. γ_0 and γ_1 set the two ends, and are trained on the whole bound; the
shape in between does not change the bound (its diffusion term is an integral over log_snr), only the variance of its
estimate, which is what the shape is trained to reduce (see `losses`).

Source: Kingma, Salimans, Poole & Ho, "Variational Diffusion Models", 2021, sec. 4 and appendix H, I.2.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import Checks
from score_sde.sde.base import Times
from score_sde.sde.scheduled import Scheduled


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDM(Scheduled):
    """A learned log_snr that begins linear, from log_snr_max to log_snr_min, with `features` hidden units."""

    curve: ClassVar[str] = "vp"

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    features: int = 256
    t_min: float = 0.0
    T: float = 1.0
    params: Any = dataclasses.field(default=None, compare=False, metadata={"setting": False})

    def check(self) -> None:
        with Checks() as check:
            ends = self.log_snr_min < self.log_snr_max
            check.that(ends, f"log_snr_min must be below log_snr_max, not {self.log_snr_min} and {self.log_snr_max}")
            check.that(1 <= self.features <= 10**6, f"features must lie in [1, 1e6], not {self.features}")

    @property
    def learned(self) -> bool:
        return True

    def init(self) -> dict[str, Any]:
        """`ends` (γ_0, γ_1) and `shape`, a nearly linear h: slopes and offsets spread evenly, the w_3 small."""
        spread = np.linspace(0, 1, self.features)
        slope = np.full(self.features, 10.0)
        shape = {
            "linear": np.float32(_inverse_softplus(1.0)),
            "slope": _inverse_softplus(slope).astype(np.float32),
            "offset": (-slope * spread).astype(np.float32),
            "weight": np.full(self.features, _inverse_softplus(1e-3 / self.features), np.float32),
        }
        ends = np.asarray([-self.log_snr_max, -self.log_snr_min], np.float32)
        return jax.tree.map(jnp.asarray, {"ends": ends, "shape": shape})

    def bind(self, params: Any) -> Self:
        return dataclasses.replace(self, params=params)

    def schedule(self, t: Times) -> Times:
        params = self.init() if self.params is None else self.params
        gamma_0, gamma_1 = params["ends"].astype(t.dtype)
        return -(gamma_0 + (gamma_1 - gamma_0) * self._share(params["shape"], t))

    def _share(self, shape: Any, t: Times) -> Times:
        """(h(τ) − h(0))/(h(1) − h(0))."""
        linear, slope, weight = (jax.nn.softplus(shape[name].astype(t.dtype)) for name in ("linear", "slope", "weight"))
        offset = shape["offset"].astype(t.dtype)

        wide = lambda unit, tau: unit.reshape((1,) * tau.ndim + (-1,))

        def h(tau: Times) -> Times:
            units = jax.nn.sigmoid(wide(slope, tau) * tau[..., None] + wide(offset, tau))
            return linear * tau + jnp.sum(wide(weight, tau) * units, axis=-1)

        tau = (t - self.t_min) / (self.T - self.t_min)
        zero, one = h(jnp.zeros((), t.dtype)), h(jnp.ones((), t.dtype))
        return (h(tau) - zero) / (one - zero)


def _inverse_softplus(value: Any) -> Any:
    return np.log(np.expm1(value)) if np.ndim(value) else math.log(math.expm1(value))
