r"""Discrete data and the continuous values that a diffusion model sees.

K levels k = 0 … K−1 become x = 2 (k + u)/K − 1 with u ~ U[0, 1): uniformly dequantised, in [−1, 1).

In float32, x is rounded by up to 6e-8: a draw within 1e-5 (K = 256) of an end of [0, 1) may land on the
interval's edge, and so in the next.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from score_sde import rng
from score_sde.typing import Data, Keys


@dataclasses.dataclass(frozen=True)
class Levels:
    """The scaling of data with `number` levels."""

    number: int

    def dequantise(self, level: Integer[Array, "batch *shape"], keys: Keys) -> Data:
        """x in [−1, 1), with one uniform draw per value."""
        u = rng.uniform(keys, level.shape[1:])
        return 2 * (level.astype(jnp.float32) + u) / self.number - 1

    def quantise(self, x: Float[Array, "*shape"]) -> Integer[Array, "*shape"]:
        """The level whose interval holds x; values outside [−1, 1) go to the nearest level."""
        return jnp.clip(jnp.floor((x + 1) * self.number / 2), 0, self.number - 1).astype(jnp.uint8)
