"""Array types used in public signatures.

A batch comes first. `*shape` is the shape of one sample: `(height, width, channels)` for images,
`(time, channels)` for audio, `(dim,)` for points.
"""

from typing import Any, Protocol

import jax
from jaxtyping import Array, Float, Key

Data = Float[Array, "batch *shape"]
PerSample = Float[Array, "batch"]
Time = Float[Array, "batch"]
Keys = Key[Array, "batch"]
Condition = Any  # a pytree of arrays with a leading batch axis, or None
Params = Any  # a pytree of arrays


class NetworkApply(Protocol):
    """A score network as a pure function: the only form in which it leaves `score_sde.models`."""

    def __call__(
        self,
        params: Params,
        x: Data,
        noise_condition: PerSample,
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Data: ...
