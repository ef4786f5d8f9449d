r"""Discrete data and the continuous values that a diffusion model sees.

K levels k = 0 … K−1 become x = low + w (k + u), w = (high − low)/K the width of a level, with u in [0, 1): uniformly
dequantised where u ~ U[0, 1). By default the range is [−1, 1). Data without levels, such as points of a plane, are x
themselves.

In float32, x is rounded by up to 6e-8: a draw within 1e-5 (K = 256) of an end of [0, 1) may land on the
interval's edge, and so in the next. Of 65,536 levels the width is 3e-5, and a draw is rounded to 500ths of it.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from score_sde import rng
from score_sde.errors import Checks
from score_sde.typing import Data, Keys

MOST_LEVELS = 2**16


@dataclasses.dataclass(frozen=True)
class Levels:
    """The scaling of data with `number` levels to [low, high), or with number = 0 of data that have none and lie
    mostly there. Raises UserError where low < high does not hold, or there are more than 2^16 levels."""

    number: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.low < self.high, f"the range of the data must rise, not go from {self.low} to {self.high}")
            check.that(0 <= self.number <= MOST_LEVELS, f"data have at most {MOST_LEVELS} levels, not {self.number}")

    @property
    def dtype(self) -> np.dtype:
        """Of the data as they are stored."""
        return np.min_scalar_type(self.number - 1) if self.number else np.dtype(np.float32)

    @property
    def width(self) -> float:
        """Of one level. Without levels 1, by which bits/dim are those of the density."""
        return (self.high - self.low) / self.number if self.number else 1.0

    @property
    def uniform_bits(self) -> float:
        """Bits/dim of data under the law that is uniform over the levels, or over the range."""
        return math.log2((self.high - self.low) / self.width)

    def place(self, level: Integer[Array, "batch *shape"], u: Float[Array, "batch *shape"]) -> Data:
        """low + w (k + u)."""
        if not self.number:
            return level.astype(u.dtype)
        return (self.high - self.low) * (level.astype(u.dtype) + u) / self.number + self.low

    def dequantise(self, level: Integer[Array, "batch *shape"], keys: Keys) -> Data:
        """x in [low, high), with one uniform draw per value."""
        return self.place(level, rng.uniform(keys, level.shape[1:])) if self.number else level

    def quantise(self, x: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """The level whose interval holds x; values outside [low, high) go to the nearest level."""
        if not self.number:
            return x
        share = (x - self.low) * self.number / (self.high - self.low)
        return jnp.clip(jnp.floor(share), 0, self.number - 1).astype(self.dtype)

    def unit(self, data: Shaped[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Stored data on [0, 1], in float64: k/(K − 1), or (x − low)/(high − low)."""
        values = data.astype(np.float64)
        return values / (self.number - 1) if self.number else (values - self.low) / (self.high - self.low)
