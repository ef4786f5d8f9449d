r"""What ADM's U-Net and its classifier share: the settings, the blocks and the way down (Dhariwal & Nichol 2021).

    embedding   e = W₂ silu(W₁ [cos, sin] of the noise condition)
    block       h = conv(R silu(norm x));  (s, b) = W silu(e);  h = (1 + s) norm(h) + b;  R x + conv(dropout silu(h))
    down        blocks, with attention at some resolutions; then R = down in a block, or a convolution of stride 2

R is nearest neighbour or the mean of 2×2. Without `scale_shift_norm` a block's embedding is added before its second
norm. All norms are of 32 groups, or as many as `channels_per_group` allows. Kernels begin as PyTorch's do,
U(±1/√fan-in), biases at zero, the last layer of each residual branch at zero.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.attention import CrossAttention, Heads, attend
from score_sde.models.conditioning import check_unet
from score_sde.models.layers import (
    DTYPES,
    REMATS,
    Dtype,
    GroupNorm,
    across,
    conv,
    convolve_upsampled,
    dense,
    pointwise,
    positional_embedding,
    rematerialised,
)
from score_sde.models.resample import downsample, upsample

Image = Float[Array, "batch height width channels"]
Embedding = Float[Array, "batch features"]
Tokens = tuple[Float[Array, "batch length features"], Bool[Array, "batch length"]]

GROUPS = 32
ATTENTION_ORDERS = ("new", "legacy")
START = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ZERO = initializers.zeros


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """Settings of the blocks.

    channels: times `channel_multipliers`, the width at each resolution. channels_per_group: the fewest in a group of a
    normalisation, 4 in EDM's form of this network; narrow widths have fewer groups than 32 then. embedding_multiplier:
    width of the embedding, in `channels`. attention_resolutions: heights in pixels at which attention follows each
    block; one is in the middle always. heads: of each attention, or as many of at least `head_channels` as the width
    holds where that is not 0. attention_order: how queries, keys and values lie in their projection, "new" one after
    the other, "legacy" head by head; published weights are of either. resample_blocks: whether residual
    blocks change the resolution ("resblock_updown"), or else nothing but resampling, with a convolution where
    `resample_convolution`. dtype: of the computation, "float32" or "bfloat16"; parameters are float32 always. remat: a
    row of `layers.REMATS`.
    """

    channels: int = 128
    channel_multipliers: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    channels_per_group: int = 1
    embedding_multiplier: int = 4
    blocks_per_resolution: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    heads: int = 4
    head_channels: int = 64
    attention_order: str = "legacy"
    scale_shift_norm: bool = True
    resample_blocks: bool = True
    resample_convolution: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"

    @property
    def widths(self) -> list[int]:
        """The channels at each resolution."""
        return [int(self.channels * multiplier) for multiplier in self.channel_multipliers]

    @property
    def embedding_features(self) -> int:
        """The width of the noise level's embedding."""
        return self.embedding_multiplier * self.channels

    def groups_of(self, width: int) -> int:
        """In how many groups `width` channels are normalised."""
        return min(GROUPS, width // self.channels_per_group)

    def heads_of(self, width: int) -> int:
        """How many heads an attention over `width` channels has."""
        return width // self.head_channels if self.head_channels else self.heads

    def check_unet(self, check: Checks) -> None:
        """Notes what is wrong with these settings."""
        check.name("attention_order", self.attention_order, ATTENTION_ORDERS)
        check.name("dtype", self.dtype, DTYPES)
        check.name("remat", self.remat, REMATS)
        for name in ("channels_per_group", "embedding_multiplier", "blocks_per_resolution"):
            check.that(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        check.that(self.channels % 2 == 0, f"channels must be even, not {self.channels}")
        if self.channels_per_group >= 1:
            self._check_groups(check)
        check.that(self.head_channels >= 0, f"head_channels must be at least 0, not {self.head_channels}")
        check.that(self.head_channels > 0 or self.heads > 0, f"heads must be at least 1, not {self.heads}")
        check.that(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")

    def _check_groups(self, check: Checks) -> None:
        """Notes widths that are no whole groups, those of two resolutions side by side on the way up among them."""
        widths = self.widths
        normalised = [*widths, *(2 * width for width in widths), *map(sum, itertools.pairwise(widths))]
        groups = [self.groups_of(width) for width in normalised]
        whole = all(count > 0 and width % count == 0 for width, count in zip(normalised, groups, strict=True))
        check.that(
            len(widths) > 0 and whole,
            "channels times each of channel_multipliers, and sums of neighbours, must be whole groups (multiples of "
            f"{GROUPS} are), not {self.channels} times {self.channel_multipliers}",
        )

    def check_sides(self, network: str, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        heights = check_unet(network, shape, len(self.channel_multipliers), self.attention_resolutions)
        levels = [level for level, height in enumerate(heights) if height in self.attention_resolutions]
        attended = sorted({self.widths[level] for level in (*levels, -1)})
        if not all(self.heads_of(width) > 0 and width % self.heads_of(width) == 0 for width in attended):
            name = "head_channels" if self.head_channels else "heads"
            value = getattr(self, name)
            raise UserError(f"{network}: {name} {value} makes no whole heads of the {attended} channels with attention")


def norm(channels: int, settings: UNetSettings, *, dtype: Dtype) -> GroupNorm:
    """Normalisation of groups, with PyTorch's epsilon."""
    return GroupNorm(channels, groups=settings.groups_of(channels), epsilon=1e-5, dtype=dtype)


class NoiseEmbedding(nnx.Module):
    """W₂ silu(W₁ f) of features f = [cos, sin] of the noise condition, with what is added to them."""

    def __init__(self, settings: UNetSettings, *, rngs: nnx.Rngs) -> None:
        width, dtype = settings.channels, DTYPES[settings.dtype]
        self.width = width
        self.embed_in = dense(width, settings.embedding_features, init=START, dtype=dtype, rngs=rngs)
        self.embed_out = dense(
            settings.embedding_features, settings.embedding_features, init=START, dtype=dtype, rngs=rngs
        )

    def features(self, noise_condition: Float[Array, "batch"]) -> Embedding:
        sine_cosine = positional_embedding(noise_condition, self.width, last=False)
        return jnp.roll(sine_cosine, self.width // 2, axis=1)

    def __call__(self, features: Embedding) -> Embedding:
        return self.embed_out(jax.nn.silu(self.embed_in(features)))


class Block(nnx.Module):
    """A residual block; see the module. resample: "none", "up" or "down"."""

    def __init__(
        self, in_channels: int, out_channels: int, settings: UNetSettings, resample: str = "none", *, rngs: nnx.Rngs
    ) -> None:
        dtype: Any = DTYPES[settings.dtype]
        options = {"dtype": dtype, "rngs": rngs}
        self.resample, self.scale_shift = resample, settings.scale_shift_norm
        self.norm_in = norm(in_channels, settings, dtype=dtype)
        self.conv_in = conv(in_channels, out_channels, 3, init=START, **options)
        told = 2 * out_channels if settings.scale_shift_norm else out_channels
        self.embedding = dense(settings.embedding_features, told, init=START, **options)
        self.norm_out = norm(out_channels, settings, dtype=dtype)
        self.dropout = nnx.Dropout(settings.dropout)
        self.conv_out = conv(out_channels, out_channels, 3, init=ZERO, **options)
        self.skip = pointwise(in_channels, out_channels, init=START, **options) if in_channels != out_channels else None

    def __call__(self, x: Image, embedding: Embedding, *, train: bool, rng: jax.Array | None) -> Image:
        """embedding: silu of it, which is all that the blocks use."""
        h = jax.nn.silu(self.norm_in(x))
        up = self.resample == "up"
        h = convolve_upsampled(self.conv_in, h) if up else self.conv_in(resampled(h, self.resample))
        told = across(self.embedding(embedding), h.ndim)
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + told)
        h = self.conv_out(self.dropout(jax.nn.silu(h), deterministic=not train, rngs=rng))
        x = resampled(x, self.resample)
        return (x if self.skip is None else self.skip(x)) + h


def resampled(x: Image, how: str) -> Image:
    """x, or twice or half its size by nearest neighbours or means, where `how` is "none", "up" or "down"."""
    if how == "none":
        return x
    return (upsample if how == "up" else downsample)(x)


def split_projection(
    projected: Float[Array, "batch tokens three_channels"], heads: int, order: str
) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values from their common projection; order: a row of `ATTENTION_ORDERS`."""
    batch, tokens, channels = projected.shape
    features = channels // (3 * heads)
    shape, axis = ((3, heads, features), 2) if order == "new" else ((heads, 3, features), 3)
    query, key, value = jnp.moveaxis(projected.reshape(batch, tokens, *shape), axis, 0)
    return query, key, value


class SelfAttention(nnx.Module):
    """x + Wₒ attention(W norm(x)) over the pixels."""

    def __init__(self, channels: int, settings: UNetSettings, *, rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        options = {"dtype": dtype, "rngs": rngs}
        self.heads, self.order = settings.heads_of(channels), settings.attention_order
        self.norm = norm(channels, settings, dtype=dtype)
        self.query_key_value = pointwise(channels, 3 * channels, init=START, axes=("in", "heads"), **options)
        self.output = pointwise(channels, channels, init=ZERO, axes=("heads", "out"), **options)

    def __call__(self, x: Image) -> Image:
        projected = self.query_key_value(self.norm(x))
        projected = projected.reshape(x.shape[0], -1, projected.shape[-1])
        query, key, value = split_projection(projected, self.heads, self.order)
        return x + self.output(attend(query, key, value).reshape(x.shape))


class Layer(nnx.Module):
    """A residual block, and where it `attends` self-attention, and attention to the condition's tokens if there are."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: UNetSettings,
        *,
        attends: bool = False,
        token_features: int = 0,
        resample: str = "none",
        rngs: nnx.Rngs,
    ) -> None:
        self.block = Block(in_channels, out_channels, settings, resample, rngs=rngs)
        self.attention = SelfAttention(out_channels, settings, rngs=rngs) if attends else None
        if attends and token_features:
            heads, dtype = settings.heads_of(out_channels), DTYPES[settings.dtype]
            self.cross = CrossAttention(out_channels, token_features, heads=heads, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Image, embedding: Embedding, tokens: Tokens | None, *, train: bool, rng: jax.Array | None
    ) -> Image:
        h = self.block(x, embedding, train=train, rng=rng)
        if self.attention is not None:
            h = self.attention(h)
            h = h if tokens is None else self.cross(h, *tokens)
        return h


class Resample(nnx.Module):
    """Resampling between blocks: up with a convolution after it, down by one of stride 2, or without convolutions."""

    def __init__(self, channels: int, settings: UNetSettings, way: str, *, rngs: nnx.Rngs) -> None:
        self.way = way
        options: dict[str, Any] = {"dtype": DTYPES[settings.dtype], "rngs": rngs, "padding": ((1, 1), (1, 1))}
        strides = 1 if way == "up" else 2
        has_conv = settings.resample_convolution
        self.conv = conv(channels, channels, 3, init=START, strides=strides, **options) if has_conv else None

    def __call__(self, x: Image) -> Image:
        if self.conv is None:
            return resampled(x, self.way)
        return convolve_upsampled(self.conv, x) if self.way == "up" else self.conv(x)


def between(way: str, channels: int, settings: UNetSettings, *, rngs: nnx.Rngs) -> Layer | Resample:
    """What changes the resolution, "up" or "down"."""
    if settings.resample_blocks:
        return Layer(channels, channels, settings, resample=way, rngs=rngs)
    return Resample(channels, settings, way, rngs=rngs)


class Level(nnx.Module):
    """The layers of one resolution, then what changes it, or None."""

    def __init__(self, layers: list[Layer], after: Layer | Resample | None) -> None:
        self.layers, self.after = nnx.List(layers), after


Run = Callable[[Layer | Resample, Image], Image]


def runner(
    settings: UNetSettings,
    embedding: Embedding,
    tokens: Tokens | None = None,
    *,
    train: bool,
    rng: jax.Array | None,
) -> Run:
    """Runs one layer of a network after the other, each with dropout of its own."""
    numbers, told = itertools.count(), jax.nn.silu(embedding)

    def run(layer: Layer | Resample, h: Image) -> Image:
        if isinstance(layer, Resample):
            return layer(h)
        key = None if rng is None else jax.random.fold_in(rng, next(numbers))
        call = lambda h, told, tokens: layer(h, told, tokens, train=train, rng=key)
        return rematerialised(call, settings.remat)(h, told, tokens)

    return run


class Encoder(nnx.Module):
    """The way down, and the middle: a block with attention and one without.

    channels: of what it gives. skips: those of what each layer gave, from the first convolution to before the middle.
    """

    def __init__(
        self, settings: UNetSettings, shape: tuple[int, ...], *, token_features: int = 0, rngs: nnx.Rngs
    ) -> None:
        height, inputs = shape[0], shape[-1]
        options: dict[str, Any] = {"token_features": token_features, "rngs": rngs}
        widths = settings.widths
        channels = widths[0]
        self.conv_in = conv(inputs, channels, 3, init=START, dtype=DTYPES[settings.dtype], rngs=rngs)
        skips, levels = [channels], []
        for number, width in enumerate(widths):
            layers, after = [], None
            attends = height // 2**number in settings.attention_resolutions
            for _ in range(settings.blocks_per_resolution):
                layers.append(Layer(channels, width, settings, attends=attends, **options))
                channels = width
                skips.append(channels)
            if number < len(widths) - 1:
                after = between("down", channels, settings, rngs=rngs)
                skips.append(channels)
            levels.append(Level(layers, after))
        self.levels = nnx.List(levels)
        self.middle_in = Layer(channels, channels, settings, attends=True, **options)
        self.middle_out = Layer(channels, channels, settings, rngs=rngs)
        self.channels, self.skips = channels, tuple(skips)

    def __call__(self, x: Image, run: Run) -> tuple[Image, list[Image]]:
        """What the middle gives, and what each layer gave on the way down."""
        h = self.conv_in(x)
        skips = [h]
        for level in self.levels:
            for layer in (*level.layers, *([] if level.after is None else [level.after])):
                h = run(layer, h)
                skips.append(h)
        return run(self.middle_out, run(self.middle_in, h)), skips
