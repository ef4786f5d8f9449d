"""Randomness: every draw is a function of (seed, name, step, sample index).

A sample therefore does not change with the batch it is computed in, the number of devices or a restart.
Keys are typed (`jax.random.key`). A batch carries one key per sample.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from score_sde.typing import Keys

SEEDS = range(2**32)  # what both jax and grain take


def stream(seed: int, name: str) -> Key[Array, ""]:
    """The root key of the random stream `name`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of one step of a stream."""
    return jax.random.fold_in(key, step)


def for_samples(key: Key[Array, ""], index: Int[Array, "batch"]) -> Keys:
    """One key per sample, by the sample's index in the whole data set or run."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def child(keys: Keys, number: Int[Array, ""] | int) -> Keys:
    """Per-sample keys of an independent sub-stream, e.g. one step of a sampler."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normal(keys: Keys, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "batch *shape"]:
    """Standard normal, `shape` per sample."""
    return _in_a_row(jax.random.normal, keys, shape, dtype)


def uniform(keys: Keys, shape: tuple[int, ...] = ()) -> Float[Array, "batch *shape"]:
    """Uniform on [0, 1), `shape` per sample."""
    return _in_a_row(jax.random.uniform, keys, shape, jnp.float32)


def rademacher(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """±1 with equal probability, `shape` per sample."""
    return _in_a_row(jax.random.rademacher, keys, shape, jnp.float32)


def _in_a_row(draw: Callable[..., Array], keys: Keys, shape: tuple[int, ...], dtype: Any) -> Array:
    """`draw` of each key: the same numbers as of `shape`, but compiled in a tenth of the time.

    XLA unrolls the short axes of a sample on a CPU, and with them the twenty rounds of hashing for each number.
    """
    row = jax.vmap(lambda key: draw(key, (math.prod(shape),), dtype))(keys)
    return row.reshape(*keys.shape, *shape)
