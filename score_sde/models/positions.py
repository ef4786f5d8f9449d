r"""Where a token is, for transformers: on a grid of any number of axes and any sides.

    sin-cos   a fixed vector added to the token: for each axis [sin, cos] of p base^{−i/n}, i < n = width/(2 axes)
    rotary    queries and keys turned, the i-th pair of features of an axis by the angle p base^{−i/n}: their product
              depends on the difference of two positions alone (Su et al. 2021; axis by axis as in FiT, Lu et al. 2024)

with p the position along the axis, in patches from 0, and base 10000. Both are computed for the grid at hand, so that
any aspect ratio is possible.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE = 10000.0
Rotation = tuple[np.ndarray, np.ndarray]  # cosine and sine, each (tokens, pairs)


def sin_cos(sides: tuple[int, ...], width: int) -> Float[np.ndarray, "tokens width"]:
    """The vector of each place of the grid, row by row. The last axis comes first among the features, as in DiT."""
    angles = [_angles(position, width // (2 * len(sides))) for position in reversed(_positions(sides))]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def rotation(sides: tuple[int, ...], features: int) -> Rotation:
    """The turn of each place of the grid, for heads of `features`, of which what no pair takes is left as it is."""
    angles = [_angles(position, features // (2 * len(sides))) for position in _positions(sides)]
    angle = np.concatenate(angles, axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotated(
    x: Float[Array, "batch tokens heads features"], turn: Rotation
) -> Float[Array, "batch tokens heads features"]:
    """The first features paired with the next as many, each pair turned by its angle, in float32."""
    cos, sin = (jnp.asarray(part)[None, :, None] for part in turn)
    pairs = cos.shape[-1]
    one, other, rest = jnp.split(x.astype(jnp.float32), [pairs, 2 * pairs], axis=-1)
    return jnp.concatenate([one * cos - other * sin, one * sin + other * cos, rest], axis=-1).astype(x.dtype)


def _positions(sides: tuple[int, ...]) -> list[np.ndarray]:
    return [position.reshape(-1) for position in np.indices(sides)]


def _angles(position: np.ndarray, count: int) -> np.ndarray:
    return position[:, None] * np.exp(-math.log(BASE) * np.arange(count) / count)[None, :]
