"""A Brownian path that can be asked about any interval, in any order, again and again."""

from typing import Any

import diffrax
import jax
from jaxtyping import Array, Float, Key

FINEST = 2.0**-20  # of the whole interval: below it the path is interpolated


class BrownianPath:
    """Of one sample `(*shape)` between two times, a function of its key: a virtual Brownian tree.

    Source: Li et al., "Scalable Gradients for Stochastic Differential Equations", 2020; Jelinčič, Foster & Kidger,
    "Single-seed generation of Brownian paths and integrals for adaptive and high order SDE solvers", 2024; `diffrax`.
    """

    def __init__(self, start: Any, end: Any, like: Float[Array, "*shape"], key: Key[Array, ""]) -> None:
        shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
        self._tree = diffrax.VirtualBrownianTree(start, end, FINEST * (end - start), shape, key)

    def change(self, start: Any, end: Any) -> Float[Array, "*shape"]:
        """W_end − W_start, start ≤ end."""
        return self._tree.evaluate(start, end)
