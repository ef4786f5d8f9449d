r"""Layers that keep the magnitude of what passes through them (Karras et al. 2024, EDM2), of which no scale is learnt.

    |a| = √(mean a²),     unit(a) = a / (|a| + 1e-4)

    weights          y = g (unit(W)/√fan_in) x        |y| = |g| where x is of unit magnitude            (eq. 47)
    swish            swish(x)/0.596                                                                      (eq. 81)
    sum              (a + t (b − a)) / √((1 − t)² + t²)                                                  (eq. 88)
    concatenation    [(1 − t) a/√n_a, t b/√n_b] √((n_a + n_b)/((1 − t)² + t²)), n channels of each       (eq. 103)
    Fourier          √2 cos(2π (W c + φ)), W ~ N(0, 1), φ uniform, both fixed                            (eq. 75)
    attention        queries, keys and values of unit magnitude in each head ("cosine attention")

The gradient of unit(W) is orthogonal to W, so that W grows as it learns, and learns the slower for it. Therefore W
itself is put back to unit magnitude after each update (eq. 66), by `project_kernels`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.models import initializers
from score_sde.models.attention import attend, split_heads
from score_sde.models.layers import Axes, Dtype, by_heads, by_sample, convolve_places, parameter, side_by_side
from score_sde.models.precision import convolve, matmul
from score_sde.models.resample import upsample_convolve
from score_sde.typing import Params

SWISH_MAGNITUDE = 0.596  # of swish(x), x ~ N(0, 1)
EPSILON = 1e-4
LEAST = 1e-30  # under a root, whose derivative at 0 is infinite; its root is nothing beside EPSILON

Image = Float[Array, "batch *space channels"]
Tokens = Float[Array, "batch tokens channels"]


def unit(a: Float[Array, "*axes"], over: int | Sequence[int] = -1) -> Float[Array, "*axes"]:
    """a / (√(mean a²) + 1e-4), the mean over axes `over` and in float32."""
    square = jnp.mean(a.astype(jnp.float32) ** 2, axis=over, keepdims=True)
    return a / (jnp.sqrt(jnp.maximum(square, LEAST)) + EPSILON).astype(a.dtype)


def unit_kernel(kernel: Float[Array, "*fan_in out"]) -> Float[Array, "*fan_in out"]:
    """The weights of each output at unit magnitude."""
    return unit(kernel, tuple(range(kernel.ndim - 1)))


def project_kernels(params: Params) -> Params:
    """The parameters with each `kernel` at unit magnitude."""
    return jax.tree.map_with_path(lambda path, leaf: unit_kernel(leaf) if path[-1].key == "kernel" else leaf, params)


def mp_swish(x: Array) -> Array:
    """swish(x)/0.596."""
    return jax.nn.swish(x) / SWISH_MAGNITUDE


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """a and b in shares 1 − t and t."""
    return (a + t * (b - a)) * (1 / math.hypot(1 - t, t))


def mp_concatenate(a: Image, b: Image, t: float) -> Image:
    """[a, b] on channels, which contribute to its magnitude in shares 1 − t and t whatever their widths."""
    n_a, n_b = a.shape[-1], b.shape[-1]
    whole = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return jnp.concatenate([a * (whole * (1 - t) / math.sqrt(n_a)), b * (whole * t / math.sqrt(n_b))], axis=-1)


class MPConv(nnx.Module):
    """A convolution without offset, or of size 1 a matrix; see the module. axes: logical ones of inputs and outputs."""

    def __init__(
        self, inputs: int, out: int, size: int = 1, *, axes: Axes = ("in", "out"), dtype: Dtype, rngs: nnx.Rngs
    ) -> None:
        window = () if size == 1 else (size, size)
        value = initializers.normal()(rngs.params(), (*window, inputs, out))
        self.kernel = parameter(unit_kernel(value), *(None for _ in window), *axes)
        self.dtype = dtype

    def __call__(
        self, x: Image, gain: Float[Array, ""] | float = 1.0, *, upsampled: bool = False
    ) -> Float[Array, "batch *space out"]:
        """upsampled: the convolution of `upsample(x)` instead."""
        if upsampled:
            return by_sample(upsample_convolve(x, self._weight(gain), self.dtype))
        return self._product(x, self._weight(gain))

    def project(self, x: Tokens, parts: int, heads: int) -> list[Tokens]:
        """As `layers.Linear.project`."""
        if not by_heads(heads):
            return jnp.split(self(x), parts, axis=-1)
        return [self._product(x, part) for part in side_by_side(self._weight(1.0), parts)]

    def _weight(self, gain: Float[Array, ""] | float) -> Float[Array, "*window in out"]:
        return unit_kernel(self.kernel[...]) * (gain / math.sqrt(math.prod(self.kernel.shape[:-1])))

    def _product(self, x: Image, weight: Float[Array, "*window in out"]) -> Image:
        product = convolve if weight.ndim > 2 else matmul if x.ndim == 2 else convolve_places
        return by_sample(product(x, weight, self.dtype))


class MPFourier(nnx.Module):
    """√2 cos(frequency c + phase), both fixed."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        frequency = initializers.normal(2 * math.pi)(rngs.params(), (features,))
        phase = initializers.uniform(math.pi)(rngs.params(), (features,))
        self.frequency = parameter(frequency, "channels", trainable=False)
        self.phase = parameter(phase, "channels", trainable=False)

    def __call__(self, position: Float[Array, "batch"]) -> Float[Array, "batch features"]:
        frequency, phase = jax.lax.stop_gradient((self.frequency[...], self.phase[...]))
        return math.sqrt(2) * jnp.cos(position[:, None] * frequency[None, :] + phase[None, :])


class MPAttention(nnx.Module):
    """Self-attention over the pixels, in share `balance` of the result."""

    def __init__(self, channels: int, heads: int, balance: float, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.heads, self.balance = heads, balance
        self.query_key_value = MPConv(channels, 3 * channels, axes=("in", "heads"), dtype=dtype, rngs=rngs)
        self.output = MPConv(channels, channels, axes=("heads", "out"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        query, key, value = self.query_key_value.project(_as_tokens(x), 3, self.heads)
        found = _cosine_attention(query, key, value, self.heads)
        return mp_sum(x, self.output(found.reshape(x.shape)), self.balance)


class MPCrossAttention(nnx.Module):
    """Attention of the pixels to the condition's tokens, in share `balance` of the result."""

    def __init__(
        self, channels: int, token_features: int, heads: int, balance: float, *, dtype: Dtype, rngs: nnx.Rngs
    ) -> None:
        self.heads, self.balance = heads, balance
        to_heads: Any = {"axes": ("in", "heads"), "dtype": dtype, "rngs": rngs}
        self.query = MPConv(channels, channels, **to_heads)
        self.key_value = MPConv(token_features, 2 * channels, **to_heads)
        self.output = MPConv(channels, channels, axes=("heads", "out"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Image, tokens: Tokens, mask: Bool[Array, "batch tokens"]) -> Image:
        key, value = self.key_value.project(tokens, 2, self.heads)
        found = _cosine_attention(self.query(_as_tokens(x)), key, value, self.heads, mask)
        return mp_sum(x, self.output(found.reshape(x.shape)), self.balance)


def _as_tokens(x: Image) -> Tokens:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _cosine_attention(query: Tokens, key: Tokens, value: Tokens, heads: int, mask: Any = None) -> Array:
    query, key, value = (unit(split_heads(part, heads)) for part in (query, key, value))
    return attend(query, key, value, mask)
