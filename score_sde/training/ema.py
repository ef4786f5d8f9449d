r"""Exponential moving average of the parameters.

    ema ← d ema + (1 − d) params,   d = min(decay, (1 + n)/(10 + n)) after n updates

The second term forgets the initial parameters quickly, as in the original code. Kept in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from score_sde.typing import Params


def update(ema: Params, params: Params, decay: float, updates: Int[Array, ""]) -> Params:
    """The average after `updates` ≥ 1 updates in all."""
    count = updates.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda average, value: average + rate * (value - average), ema, params)
