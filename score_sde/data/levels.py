r"""Discrete data and the continuous values that a diffusion model sees.

K levels k = 0 … K−1 become x = low + w (k + u), w = (high − low)/K the width of a level, with u in [0, 1): uniformly
dequantised where u ~ U[0, 1). By default the range is [−1, 1).

In float32, x is rounded by up to 6e-8: a draw within 1e-5 (K = 256) of an end of [0, 1) may land on the
interval's edge, and so in the next.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from score_sde import rng
from score_sde.errors import UserError
from score_sde.typing import Data, Keys


@dataclasses.dataclass(frozen=True)
class Levels:
    """The scaling of data with `number` levels to [low, high). Raises UserError where low < high does not hold."""

    number: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"the range of the data must rise, not go from {self.low} to {self.high}")

    @property
    def width(self) -> float:
        """Of one level."""
        return (self.high - self.low) / self.number

    def place(self, level: Integer[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Data:
        """low + w (k + u)."""
        return (self.high - self.low) * (level.astype(u.dtype) + u) / self.number + self.low

    def dequantise(self, level: Integer[Array, "batch *shape"], keys: Keys) -> Data:
        """x in [low, high), with one uniform draw per value."""
        return self.place(level, rng.uniform(keys, level.shape[1:]))

    def quantise(self, x: Float[Array, "*shape"]) -> Integer[Array, "*shape"]:
        """The level whose interval holds x; values outside [low, high) go to the nearest level."""
        share = (x - self.low) * self.number / (self.high - self.low)
        return jnp.clip(jnp.floor(share), 0, self.number - 1).astype(jnp.uint8)
