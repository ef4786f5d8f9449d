r"""Exponential moving averages of the parameters, one for each half-life.

    ema ← d ema + (1 − d) params,   d = min(2^{−1/h}, (1 + n)/(10 + n)) after n updates, h the half-life in steps

The second term forgets the initial parameters quickly, as in the original code. Kept in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from score_sde.typing import Params


def create(params: Params, half_lives: Sequence[float]) -> tuple[Params, ...]:
    """The averages before the first step, which are the parameters."""
    return tuple(jax.tree.map(jnp.copy, params) for _ in half_lives)


def update(
    averages: tuple[Params, ...], params: Params, half_lives: Sequence[float], updates: Int[Array, ""]
) -> tuple[Params, ...]:
    """The averages after `updates` ≥ 1 updates in all. half_lives: in steps."""
    count = updates.astype(jnp.float32)

    def one(average: Params, half_life: float) -> Params:
        rate = jnp.maximum(1 - 0.5 ** (1 / half_life), 9 / (10 + count))  # 1 − d
        return jax.tree.map(lambda old, new: old + rate * (new - old), average, params)

    return tuple(one(average, half_life) for average, half_life in zip(averages, half_lives, strict=True))
