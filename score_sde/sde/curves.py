r"""Curves in the (α, σ) plane that families of processes move along.

A process is a curve and a speed along it. The position on the curve is given by log_snr = 2 log(α/σ) alone, so a
process on the same curve with another log_snr(t) is the same process at another speed:

    curve    equation              α                    σ                    norm c(α, σ)
    vp       α² + σ² = 1           √sigmoid(log_snr)    √sigmoid(−log_snr)   √(α² + σ²)
    ve       α = 1                 1                    e^{−log_snr/2}       α
    linear   α + σ = 1             sigmoid(log_snr/2)   sigmoid(−log_snr/2)  α + σ
    subvp    σ = 1 − α²            2/(√(4 + σ̄²) + σ̄)    α σ̄                  (√(4 α² + σ²) + σ)/2

c is the homogeneous function that is 1 on the curve: (α, σ)/c is the point of the curve with the ratio σ̄ = σ/α,
also where α = 0 and no logarithm exists.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, "*values"]


class Curve(NamedTuple):
    """point: log_snr -> (α, σ). norm: (α, σ) -> c. log_alpha_slope: log_snr -> d log α/d log_snr."""

    point: Callable[[Values], tuple[Values, Values]]
    norm: Callable[[Values, Values], Values]
    log_alpha_slope: Callable[[Values], Values]


def _vp_point(log_snr: Values) -> tuple[Values, Values]:
    return jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))


def _subvp_point(log_snr: Values) -> tuple[Values, Values]:
    sigma_bar = jnp.exp(-0.5 * log_snr)
    alpha = 2 / (jnp.sqrt(4 + sigma_bar**2) + sigma_bar)
    return alpha, alpha * sigma_bar


CURVES: dict[str, Curve] = {
    "vp": Curve(
        _vp_point,
        lambda alpha, sigma: jnp.sqrt(alpha**2 + sigma**2),
        lambda log_snr: 0.5 * jax.nn.sigmoid(-log_snr),
    ),
    "ve": Curve(
        lambda log_snr: (jnp.ones_like(log_snr), jnp.exp(-0.5 * log_snr)),
        lambda alpha, sigma: alpha,
        jnp.zeros_like,
    ),
    "linear": Curve(
        lambda log_snr: (jax.nn.sigmoid(0.5 * log_snr), jax.nn.sigmoid(-0.5 * log_snr)),
        lambda alpha, sigma: alpha + sigma,
        lambda log_snr: 0.5 * jax.nn.sigmoid(-0.5 * log_snr),
    ),
    "subvp": Curve(
        _subvp_point,
        lambda alpha, sigma: 0.5 * (jnp.sqrt(4 * alpha**2 + sigma**2) + sigma),
        lambda log_snr: 0.5 / jnp.sqrt(1 + 4 * jnp.exp(log_snr)),
    ),
}
