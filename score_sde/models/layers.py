"""Layers shared by the score networks. Channels last; computation in `dtype`, parameters and gradients in float32.

Every parameter carries the names of its logical axes, which `distributed` maps to axes of the mesh:

    in, out        features of a layer's input and output
    heads, mlp     the widened axis of an attention's and of a feed-forward's projections
    channels       of a scale, an offset or a bias
    table          rows of an embedding
    tokens         places of learnt positions
    None           never sharded: a kernel's height and width

A parameter that is fixed by design, such as random frequencies, says `trainable=False`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from score_sde.models import initializers
from score_sde.models.precision import convolve, matmul, offset
from score_sde.models.resample import upsample_convolve

Dtype = Any
Axes = tuple[str | None, ...]
DTYPES: dict[str, Dtype] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ZERO_INIT = 1e-10  # the "init scale 0" of the DDPM family: near-zero outputs, with gradients that are not zero


def by_sample(x: Array) -> Array:
    """x, whose samples stay on the devices that their batch is split over, where parameters are split over them too.

    Of two layers in a row, the first split over its outputs and the second over its inputs, XLA may leave the kernels
    where they are, and gather the samples instead: more FLOPs on every device and, where they are large, more to send.
    Does nothing outside a mesh whose axis `fsdp` splits anything.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:
        return x
    axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return x
    free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(axes, *free))


def by_heads(heads: int) -> bool:
    """Whether attention of so many heads is split over the mesh's axis `tensor`, whole heads to each device."""
    mesh = jax.sharding.get_abstract_mesh()
    size = 1 if mesh.empty else mesh.shape.get("tensor", 1)
    return size > 1 and heads % size == 0


def side_by_side(values: Float[Array, "*axes whole"], parts: int) -> list[Float[Array, "*axes part"]]:
    """The parts of a kernel or of its offset, such as those of queries, keys and values, each split over `tensor`.

    Devices that share the whole have the heads of one part each; for attention they must have the same heads of every
    part. Either the kernel moves, once, or the activations of every sample do.
    """
    free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * (values.ndim - 1)
    spec = jax.sharding.PartitionSpec(*free, "tensor")
    return [jax.lax.with_sharding_constraint(part, spec) for part in jnp.split(values, parts, axis=-1)]


def parameter(value: Array, *axes: str | None, trainable: bool = True) -> nnx.Param:
    """A parameter with a name for each of its axes."""
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, axes=axes, trainable=trainable)


def initializer(scale: float = 1.0) -> nnx.Initializer:
    """DDPM's initialiser: uniform, variance `scale` over the mean of fan-in and fan-out; 0 becomes `ZERO_INIT`."""
    return initializers.variance_scaling(scale or ZERO_INIT, "fan_avg", "uniform")


class Conv(nnx.Conv):
    """`nnx.Conv` of (batch, *space, channels), ungrouped, by `precision.convolve`."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "batch *space in_channels"]
    ) -> Float[Array, "batch *places out_channels"]:
        kernel, dtype = self.kernel[...], self.dtype or jnp.result_type(x, self.kernel[...])
        strides, dilation = self.strides or 1, self.kernel_dilation or 1
        h = convolve(x, kernel, dtype, strides=strides, padding=self.padding, dilation=dilation)
        return h if self.bias is None else offset(h, self.bias[...])


class Linear(nnx.Linear):
    """`nnx.Linear` by `precision.matmul`."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "*places in_features"]
    ) -> Float[Array, "*places out_features"]:
        h = self.product(x, self.kernel[...], self.dtype or jnp.result_type(x, self.kernel[...]))
        return h if self.bias is None else offset(h, self.bias[...])

    def project(self, x: Float[Array, "*places in_features"], parts: int, heads: int) -> list[Array]:
        """The result in `parts` on its features, each of `heads`; see `side_by_side`."""
        if not by_heads(heads):
            return jnp.split(self(x), parts, axis=-1)
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        found = [self.product(x, kernel, dtype) for kernel in side_by_side(self.kernel[...], parts)]
        if self.bias is None:
            return found
        return [offset(h, bias) for h, bias in zip(found, side_by_side(self.bias[...], parts), strict=True)]

    @staticmethod
    def product(x: Array, kernel: Array, dtype: Dtype) -> Array:
        """x @ kernel."""
        return matmul(x, kernel, dtype)


class Pointwise(Linear):
    """A linear layer by `convolve_places`."""

    @staticmethod
    def product(x: Array, kernel: Array, dtype: Dtype) -> Array:
        """x @ kernel, as a convolution."""
        return convolve_places(x, kernel, dtype)


class Embed(nnx.Embed):
    """`nnx.Embed`, which takes rows and then rounds them, so that the table's gradient is summed in its precision."""

    def __call__(  # type: ignore[override]
        self, rows: Int[Array, "*places"]
    ) -> Float[Array, "*places features"]:
        table = self.embedding[...]
        return jnp.take(table, rows, axis=0).astype(self.dtype or table.dtype)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, ...],
    *,
    scale: float = 1.0,
    init: nnx.Initializer | None = None,
    bias: bool = True,
    dimensions: int = 2,
    dtype: Dtype,
    rngs: nnx.Rngs,
    **options: Any,
) -> Conv:
    """A convolution, same-padded unless `options`, those of `nnx.Conv`, say otherwise.

    scale: of DDPM's initialiser. init: another one instead.
    """
    size = (kernel,) * dimensions if isinstance(kernel, int) else kernel
    return Conv(
        in_channels,
        out_channels,
        size,
        kernel_init=init or initializer(scale),
        use_bias=bias,
        kernel_metadata={"axes": (*(None for _ in size), "in", "out"), "trainable": True},
        bias_metadata={"axes": ("channels",), "trainable": True},
        dtype=dtype,
        rngs=rngs,
        **options,
    )


def convolve_upsampled(layer: Conv, x: Array) -> Array:
    """layer(upsample(x)) for nearest neighbours and a convolution of size 3, in 4/9 of the products for an image."""
    kernel = layer.kernel[...]
    h = upsample_convolve(x, kernel, layer.dtype or jnp.result_type(x, kernel))
    return h if layer.bias is None else offset(h, layer.bias[...])


def dense(
    in_features: int,
    out_features: int,
    *,
    scale: float = 1.0,
    init: nnx.Initializer | None = None,
    bias: bool = True,
    axes: Axes = ("in", "out"),
    dtype: Dtype,
    rngs: nnx.Rngs,
    layer: type[Linear] = Linear,
) -> Linear:
    """A linear layer. scale: of DDPM's initialiser. init: another one instead. axes: the kernel's."""
    return layer(
        in_features,
        out_features,
        kernel_init=init or initializer(scale),
        use_bias=bias,
        kernel_metadata={"axes": axes, "trainable": True},
        bias_metadata={"axes": (axes[1] if axes[1] != "out" else "channels",), "trainable": True},
        dtype=dtype,
        rngs=rngs,
    )


def pointwise(in_channels: int, out_channels: int, **options: Any) -> Linear:
    """A linear map of the channels at every place of `(batch, *space, channels)`: `dense`, computed as a convolution.

    The same product as a matrix's, but the gradient of the kernel, a sum over all places, is taken without their
    being transposed: on a CPU the product of matrices takes two to three times as long for it.
    """
    return dense(in_channels, out_channels, layer=Pointwise, **options)


def convolve_places(
    x: Float[Array, "batch *space in_channels"], kernel: Float[Array, "in_channels out_channels"], dtype: Dtype
) -> Float[Array, "batch *space out_channels"]:
    """x @ kernel as a convolution; see `pointwise`."""
    return convolve(x, kernel.reshape(*(1,) * (x.ndim - 2), *kernel.shape), dtype)


def embedding(rows: int, features: int, *, init: nnx.Initializer | None = None, rngs: nnx.Rngs, dtype: Dtype) -> Embed:
    """A table of `rows` learnt vectors, at first of length 1 in the mean square unless `init` says otherwise."""
    init = init or initializers.normal(1 / math.sqrt(features))
    metadata = {"axes": ("table", "out"), "trainable": True}
    return Embed(rows, features, embedding_init=init, embedding_metadata=metadata, dtype=dtype, rngs=rngs)


class GroupNorm(nnx.Module):
    """Group normalisation over all axes between batch and channels, statistics in float32.

    groups: by default min(C/4, 32), as in score_sde. Mean and variance in two passes (exact for a large mean); sums
    over pixels are taken per channel, where the channels are contiguous in memory, and only then over the group.
    """

    def __init__(self, channels: int, *, groups: int | None = None, epsilon: float = 1e-6, dtype: Dtype) -> None:
        self.groups = (math.gcd(channels, min(channels // 4, 32)) or 1) if groups is None else groups
        self.epsilon, self.dtype = epsilon, dtype
        self.scale = parameter(jnp.ones(channels), "channels")
        self.bias = parameter(jnp.zeros(channels), "channels")

    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space channels"]:
        space = tuple(range(1, x.ndim - 1))
        x_32 = x.astype(jnp.float32)
        centred = x_32 - self._group_mean(x_32.mean(axis=space), x.ndim)
        inverse_std = jax.lax.rsqrt(self._group_mean(jnp.mean(centred**2, axis=space), x.ndim) + self.epsilon)
        scale, bias = across(self.scale[...][None], x.ndim), across(self.bias[...][None], x.ndim)
        return (centred * (inverse_std * scale) + bias).astype(self.dtype)

    def _group_mean(self, value: Float[Array, "batch channels"], rank: int) -> Float[Array, "batch *ones channels"]:
        """Each channel's value replaced by the mean over its group."""
        batch, channels = value.shape
        mean = value.reshape(batch, self.groups, -1).mean(axis=2, keepdims=True)
        full = jnp.broadcast_to(mean, (batch, self.groups, channels // self.groups))
        return across(full.reshape(batch, channels), rank)


def across(features: Float[Array, "batch channels"], rank: int) -> Float[Array, "batch *ones channels"]:
    """Features of each sample, shaped to meet an array of `rank` axes at every place in it."""
    return features.reshape(features.shape[0], *(1,) * (rank - 2), features.shape[-1])


def positional_embedding(
    position: Float[Array, "batch"], features: int, *, last: bool = True, base: float = 10000.0
) -> Float[Array, "batch features"]:
    """[sin, cos] of position × base^{−i/n}, i < features/2.

    n: features/2 − 1, with 1/base the lowest frequency (Vaswani et al. 2017 as in DDPM), or features/2 where not `last`
    (ADM, EDM, DiT). An odd number of features ends in a zero.
    """
    half = features // 2
    frequency = np.exp(-math.log(base) * np.arange(half) / max(half - last, 1)).astype(np.float32)
    angle = position[:, None] * jnp.asarray(frequency)[None, :]
    parts = [jnp.sin(angle), jnp.cos(angle)] + ([jnp.zeros_like(position)[:, None]] if features % 2 else [])
    return jnp.concatenate(parts, axis=1)


class FourierEmbedding(nnx.Module):
    """[sin, cos] of 2π W position with fixed W ~ N(0, scale²), `features`/2 of them (Tancik et al. 2020)."""

    def __init__(self, features: int, scale: float, *, rngs: nnx.Rngs) -> None:
        value = initializers.normal(scale)(rngs.params(), (features // 2,))
        self.frequency = parameter(value, "channels", trainable=False)

    def __call__(self, position: Float[Array, "batch"]) -> Float[Array, "batch features"]:
        angle = position[:, None] * jax.lax.stop_gradient(self.frequency[...])[None, :] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def _of_matrices(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a result is that of a matrix product or a convolution."""
    return primitive.name in ("dot_general", "conv_general_dilated", "product")


# What of a block is kept for the backward pass; the rest is computed again.
REMATS: dict[str, Callable[..., bool]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "matmuls": _of_matrices,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(block: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The block, of whose activations the backward pass finds kept what `REMATS` says."""
    return block if remat == "none" else jax.checkpoint(block, policy=REMATS[remat])
