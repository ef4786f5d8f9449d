"""Layers shared by the score networks. Channels last; computation in `dtype`, parameters in float32."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Dtype = Any
ZERO_INIT = 1e-10  # the "init scale 0" of the DDPM family: near-zero outputs, with gradients that are not zero


def initializer(scale: float = 1.0) -> nnx.Initializer:
    """DDPM's initialiser: uniform, variance `scale` over the mean of fan-in and fan-out; 0 becomes `ZERO_INIT`."""
    return nnx.initializers.variance_scaling(scale or ZERO_INIT, "fan_avg", "uniform")


def conv(
    in_channels: int, out_channels: int, kernel: int, *, scale: float = 1.0, dtype: Dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A same-padded convolution."""
    return nnx.Conv(in_channels, out_channels, (kernel, kernel), kernel_init=initializer(scale), dtype=dtype, rngs=rngs)


def dense(in_features: int, out_features: int, *, scale: float = 1.0, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with DDPM's initialiser."""
    return nnx.Linear(in_features, out_features, kernel_init=initializer(scale), dtype=dtype, rngs=rngs)


class GroupNorm(nnx.Module):
    """Group normalisation with min(C/4, 32) groups and epsilon 1e-6, statistics in float32.

    Mean and variance in two passes (exact for a large mean); sums over pixels are taken per channel, where the
    channels are contiguous in memory, and only then over the group.
    """

    def __init__(self, channels: int, *, dtype: Dtype) -> None:
        self.groups = math.gcd(channels, min(channels // 4, 32)) or 1
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        x_32 = x.astype(jnp.float32)
        centred = x_32 - self._group_mean(x_32.mean(axis=(1, 2)))
        inverse_std = jax.lax.rsqrt(self._group_mean(jnp.mean(centred**2, axis=(1, 2))) + 1e-6)
        scale, bias = self.scale[...][None, None, None, :], self.bias[...][None, None, None, :]
        return (centred * (inverse_std * scale) + bias).astype(self.dtype)

    def _group_mean(self, value: Float[Array, "batch channels"]) -> Float[Array, "batch 1 1 channels"]:
        """Each channel's value replaced by the mean over its group."""
        batch, channels = value.shape
        mean = value.reshape(batch, self.groups, -1).mean(axis=2, keepdims=True)
        return jnp.broadcast_to(mean, (batch, self.groups, channels // self.groups)).reshape(batch, 1, 1, channels)


def positional_embedding(position: Float[Array, "batch"], features: int) -> Float[Array, "batch features"]:
    """[sin, cos] of position × 10000^{−i/(features/2 − 1)}, i < features/2 (Vaswani et al. 2017, as in DDPM)."""
    half = features // 2
    frequency = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angle = position[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class FourierEmbedding(nnx.Module):
    """[sin, cos] of 2π W position with fixed W ~ N(0, scale²) (Tancik et al. 2020)."""

    def __init__(self, features: int, scale: float, *, rngs: nnx.Rngs) -> None:
        self.frequency = nnx.Param(scale * jax.random.normal(rngs.params(), (features // 2,)))

    def __call__(self, position: Float[Array, "batch"]) -> Float[Array, "batch features"]:
        angle = 2 * math.pi * position[:, None] * jax.lax.stop_gradient(self.frequency[...])[None, :]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class AttentionBlock(nnx.Module):
    """Self-attention over the pixels, single head, residual (DDPM)."""

    def __init__(self, channels: int, *, rescale: float, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels, dtype=dtype)
        self.query_key_value = dense(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.output = dense(channels, channels, scale=0.0, dtype=dtype, rngs=rngs)
        self.rescale = rescale

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        batch, height, width, channels = x.shape
        projected = self.query_key_value(self.norm(x)).reshape(batch, height * width, 3, 1, channels)
        query, key, value = projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return (x + self.output(attended)) * self.rescale


class ResidualBlock(nnx.Module):
    """BigGAN residual block of DDPM++/NCSN++: norm, swish, [resample], conv, +embedding, norm, swish, dropout, conv.

    resample: "none", "up" (nearest) or "down" (average), factor 2. rescale multiplies the sum with the skip path.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_features: int,
        *,
        dropout: float,
        resample: str,
        rescale: float,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.resample = RESAMPLE[resample]
        self.rescale = rescale
        self.norm_in = GroupNorm(in_channels, dtype=dtype)
        self.conv_in = conv(in_channels, out_channels, 3, dtype=dtype, rngs=rngs)
        self.embedding = dense(embedding_features, out_channels, dtype=dtype, rngs=rngs)
        self.norm_out = GroupNorm(out_channels, dtype=dtype)
        self.dropout = nnx.Dropout(dropout)
        self.conv_out = conv(out_channels, out_channels, 3, scale=0.0, dtype=dtype, rngs=rngs)
        changed = in_channels != out_channels or resample != "none"
        self.skip = conv(in_channels, out_channels, 1, dtype=dtype, rngs=rngs) if changed else None

    def __call__(
        self,
        x: Float[Array, "batch height width in_channels"],
        embedding: Float[Array, "batch features"],
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Float[Array, "batch new_height new_width out_channels"]:
        h = self.conv_in(self.resample(jax.nn.swish(self.norm_in(x))))
        h = h + self.embedding(jax.nn.swish(embedding))[:, None, None, :]
        h = jax.nn.swish(self.norm_out(h))
        h = self.conv_out(self.dropout(h, deterministic=not train, rngs=rng))
        skip = x if self.skip is None else self.skip(self.resample(x))
        return (skip + h) * self.rescale


def upsample(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    """Nearest neighbour, factor 2."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height_2 width_2 channels"]:
    """Average of 2×2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


RESAMPLE = {"none": lambda x: x, "up": upsample, "down": downsample}
