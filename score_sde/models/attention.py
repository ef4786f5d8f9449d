r"""Attention of the score networks: one function for all of them.

    out_i = Σ_j softmax_j(q_i · k_j / √features) v_j

Of more than `CHUNK` queries the result is computed a chunk of queries at a time, and recomputed in the backward
pass, so that memory grows with the number of tokens and not with its square.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.models.layers import Dtype, GroupNorm, dense

CHUNK = 1024  # queries; 32×32 pixels at once, as all published U-Nets have

Heads = Float[Array, "batch tokens heads features"]


def attend(query: Heads, key: Heads, value: Heads, mask: Bool[Array, "batch keys"] | None = None) -> Heads:
    """Attention of each query over the keys, of those where `mask` is True, which at least one must be."""
    tokens = query.shape[1]
    if tokens <= CHUNK:
        return _attend(query, key, value, mask)
    count = -(-tokens // CHUNK)
    padded = jnp.pad(query, ((0, 0), (0, count * CHUNK - tokens), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(query.shape[0], count, CHUNK, *query.shape[2:]), 1, 0)
    one = jax.checkpoint(lambda chunk: _attend(chunk, key, value, mask))
    done = jnp.moveaxis(jax.lax.map(one, chunks), 0, 1)
    return done.reshape(query.shape[0], count * CHUNK, *query.shape[2:])[:, :tokens]


def _attend(query: Heads, key: Heads, value: Heads, mask: Bool[Array, "batch keys"] | None) -> Heads:
    with jax.numpy_dtype_promotion("standard"):  # the function itself mixes bfloat16 and float32
        return jax.nn.dot_product_attention(query, key, value, mask=None if mask is None else mask[:, None, None, :])


def split_heads(x: Float[Array, "batch tokens channels"], heads: int) -> Heads:
    """Channels as heads × features, heads first."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


class CrossAttention(nnx.Module):
    """x + Wₒ attention(W_q norm(x), W_k tokens, W_v tokens) over all places of x; at first the identity.

    heads: of `channels`/`heads` features each. norm: of x, by default a group normalisation.
    """

    def __init__(
        self,
        channels: int,
        token_features: int,
        *,
        heads: int = 1,
        norm: nnx.Module | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        self.norm: Any = norm or GroupNorm(channels, dtype=dtype)
        self.query = dense(channels, channels, axes=("in", "heads"), dtype=dtype, rngs=rngs)
        self.key_value = dense(token_features, 2 * channels, axes=("in", "heads"), dtype=dtype, rngs=rngs)
        self.output = dense(channels, channels, scale=0.0, axes=("heads", "out"), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch *space channels"],
        tokens: Float[Array, "batch length token_features"],
        mask: Bool[Array, "batch length"],
    ) -> Float[Array, "batch *space channels"]:
        batch, channels = x.shape[0], x.shape[-1]
        query = split_heads(self.query(self.norm(x)).reshape(batch, -1, channels), self.heads)
        parts = self.key_value.project(tokens, 2, self.heads)
        key, value = (split_heads(part, self.heads) for part in parts)
        return x + self.output(attend(query, key, value, mask).reshape(x.shape))
