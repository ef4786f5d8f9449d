r"""The settings, residual blocks, attention and resampling of the U-Nets of Ho et al. 2020 and Song et al. 2021.

    block       h = conv(R φ(norm x)) + W φ(e);  h = conv(dropout φ(norm h));  (R x + h)/√2
    between     R = up or down in a block (BigGAN), or with a convolution, of stride 2 on the way down (DDPM)

φ is swish unless `activation` says otherwise, R naive or FIR resampling (`resample`). All names of settings are those
of score_sde where it has one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import Checks
from score_sde.models.attention import CrossAttention, attend
from score_sde.models.conditioning import check_unet
from score_sde.models.layers import DTYPES, REMATS, GroupNorm, across, conv, convolve_upsampled, dense, pointwise
from score_sde.models.precision import offset
from score_sde.models.resample import NAIVE, downsample, smooth, upsample
from score_sde.models.sigmas import Sigmas
from score_sde.models.video import AttentionOverTime

Image = Float[Array, "batch *space channels"]
Embedding = Float[Array, "batch features"]
SMALL_SCALE = 0.1  # of the initialiser of 1×1 projections, as in DDPM

EMBEDDINGS = ("positional", "fourier", "log_fourier")
BLOCKS = ("biggan", "ddpm")
PROGRESSIVE = ("none", "output_skip", "residual")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
COMBINE = ("sum", "cat")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swish": jax.nn.swish,
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "lrelu": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(Sigmas):
    """Settings of the network for images, and of its form for video.

    channels: width at full resolution, times `channel_multipliers` below. attention_resolutions: heights in pixels
    at which attention follows each block. embedding: of the noise condition, "log_fourier" of its logarithm as in
    score_sde, where it is σ; fourier_scale: standard deviation of the frequencies. block: "biggan" resamples within
    residual blocks, "ddpm" between them, by convolutions where `resample_convolution`. fir: whether resampling takes
    `fir_kernel` and not nearest neighbours and means. skip_rescale: every sum of two by 1/√2. progressive,
    progressive_input: how the output is built up and the input fed in over the resolutions; progressive_combine:
    "input_skip" by sum or concatenation. noise_conditional: False tells the network nothing of the noise level.
    noise_features, embedding_features: widths of γ and e; 0 for `channels` (for Fourier features twice that) and 4
    `channels`. condition_first: the condition is added to γ and not to what both layers make of it, as in EDM.
    activation: a row of `ACTIVATIONS`. groups: of every normalisation, 0 for min(C/4, 32), or what divides both that
    and C. dtype: of the computation, "float32" or "bfloat16";
    parameters are float32 always. remat: a row of `layers.REMATS`.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_resolution: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"
    fourier_scale: float = 16.0
    block: str = "biggan"
    resample_convolution: bool = True
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    skip_rescale: bool = True
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    noise_conditional: bool = True
    noise_features: int = 0
    embedding_features: int = 0
    condition_first: bool = False
    activation: str = "swish"
    groups: int = 0
    dropout: float = 0.1
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("embedding", self.embedding, EMBEDDINGS)
            check.name("block", self.block, BLOCKS)
            check.name("progressive", self.progressive, PROGRESSIVE)
            check.name("progressive_input", self.progressive_input, PROGRESSIVE_INPUT)
            check.name("progressive_combine", self.progressive_combine, COMBINE)
            check.name("activation", self.activation, ACTIVATIONS)
            check.name("dtype", self.dtype, DTYPES)
            check.name("remat", self.remat, REMATS)
            check.that(self.channels >= 4, f"channels must be at least 4, not {self.channels}")
            multipliers = self.channel_multipliers
            check.that(
                len(multipliers) > 0 and min(multipliers) >= 1,
                f"channel_multipliers must be at least one positive number, not {multipliers}",
            )
            blocks = self.blocks_per_resolution
            check.that(blocks >= 1, f"blocks_per_resolution must be at least 1, not {blocks}")
            for name in ("noise_features", "embedding_features"):
                check.that(getattr(self, name) >= 0, f"{name} must be at least 0, not {getattr(self, name)}")
            joined = self.noise_conditional or not self.condition_first
            check.that(joined, "condition_first needs noise_conditional: there is nothing to add the condition to")
            check.that(self.fourier_scale > 0, f"fourier_scale must be positive, not {self.fourier_scale}")
            check.that(
                len(self.fir_kernel) >= 2 and sum(self.fir_kernel) > 0,
                f"fir_kernel must be at least two taps of a positive sum, not {self.fir_kernel}",
            )
            divides = self.groups >= 0 and (self.groups == 0 or self.channels % self.groups == 0)
            check.that(
                divides, f"groups must divide channels={self.channels}, or be 0 for min(C/4, 32), not {self.groups}"
            )
            check.that(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")
            self.check_conditions(check)
            self.check_sigmas(check)
            told = not self.scale_by_sigma or self.embedding != "fourier"
            check.that(told, "scale_by_sigma needs embedding 'log_fourier' of sigma itself, or 'positional' of a level")

    @property
    def widths(self) -> tuple[int, int]:
        """Features of γ and of e."""
        noise = self.noise_features or self.channels * (1 if self.embedding == "positional" else 2)
        return noise, self.embedding_features or 4 * self.channels

    def check_image_shape(self, network: str, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        check_unet(network, shape, len(self.channel_multipliers), self.attention_resolutions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSettings(UNet):
    """The settings with what else the blocks need, which is not for a config.

    dimensions: axes between batch and channels. frames: of the videos whose frames are folded into the batch, or 0.
    """

    dimensions: int = dataclasses.field(default=2, metadata={"setting": False})
    frames: int = dataclasses.field(default=0, metadata={"setting": False})


class Attention(nnx.Module):
    """Self-attention over the pixels, single head, residual (DDPM)."""

    def __init__(self, channels: int, settings: BlockSettings, *, rngs: nnx.Rngs) -> None:
        dtype = DTYPES[settings.dtype]
        self.norm = GroupNorm(channels, groups=settings.groups or None, dtype=dtype)
        # Three projections of fan-out C in one of 3C: twice the scale makes the variance that of each.
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.query_key_value = pointwise(channels, 3 * channels, scale=2 * SMALL_SCALE, axes=("in", "heads"), **options)
        self.output = pointwise(channels, channels, scale=0.0, axes=("heads", "out"), **options)
        self.rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0

    def __call__(self, x: Image) -> Image:
        batch, channels = x.shape[0], x.shape[-1]
        projected = self.query_key_value(self.norm(x)).reshape(batch, -1, 1, 3 * channels)
        query, key, value = jnp.split(projected, 3, axis=-1)
        return (x + self.output(attend(query, key, value).reshape(x.shape))) * self.rescale


class Block(nnx.Module):
    """A residual block; see the module. resample: "none", "up" or "down"."""

    def __init__(
        self, in_channels: int, out_channels: int, settings: BlockSettings, resample: str = "none", *, rngs: nnx.Rngs
    ) -> None:
        dtype: Any = DTYPES[settings.dtype]
        groups = settings.groups or None
        self.resample, self.kernel = resample, settings.fir_kernel if settings.fir else NAIVE
        self.rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0
        self.activation = ACTIVATIONS[settings.activation]
        self.norm_in = GroupNorm(in_channels, groups=groups, dtype=dtype)
        options: dict[str, Any] = {"dimensions": settings.dimensions, "dtype": dtype, "rngs": rngs}
        self.conv_in = conv(in_channels, out_channels, 3, **options)
        if settings.noise_conditional or settings.has_features:
            self.embedding = dense(settings.widths[1], out_channels, dtype=dtype, rngs=rngs)
        self.norm_out = GroupNorm(out_channels, groups=groups, dtype=dtype)
        self.dropout = nnx.Dropout(settings.dropout)
        self.conv_out = conv(out_channels, out_channels, 3, scale=0.0, **options)
        changed = in_channels != out_channels or resample != "none"
        scale = 1.0 if settings.block == "biggan" else SMALL_SCALE
        self.skip = pointwise(in_channels, out_channels, scale=scale, dtype=dtype, rngs=rngs) if changed else None

    def __call__(self, x: Image, embedding: Embedding | None, *, train: bool, rng: jax.Array | None) -> Image:
        h = self.activation(self.norm_in(x))
        if self.resample == "up" and self.kernel == NAIVE:
            h = convolve_upsampled(self.conv_in, h)
        else:
            h = self.conv_in(self._resampled(h))
        if embedding is not None:
            h = h + across(self.embedding(embedding), h.ndim)
        h = self.activation(self.norm_out(h))
        h = self.conv_out(self.dropout(h, deterministic=not train, rngs=rng))
        return (self._skipped(x) + h) * self.rescale

    def _resampled(self, x: Image) -> Image:
        if self.resample == "none":
            return x
        return (upsample if self.resample == "up" else downsample)(x, self.kernel)

    def _skipped(self, x: Image) -> Image:
        if self.skip is None:
            return x
        if self.resample != "up":
            return self.skip(self._resampled(x))
        # A linear map of the channels and resampling commute, and the map costs a quarter before it. The offset does
        # not, since a filter sees zeros outside of the image.
        assert self.skip.bias is not None
        mapped = self.skip.product(x, self.skip.kernel[...], x.dtype)
        return offset(self._resampled(mapped), self.skip.bias[...])


class Upsample(nnx.Module):
    """Resampling by 2, with a convolution where `convolution`; with FIR the two see the same zeros outside."""

    def __init__(self, channels: int, out: int, settings: BlockSettings, *, convolution: bool, rngs: nnx.Rngs) -> None:
        self.fir, self.kernel = settings.fir, settings.fir_kernel if settings.fir else NAIVE
        padding = "VALID" if settings.fir else "SAME"
        options = {"dtype": DTYPES[settings.dtype], "rngs": rngs, "padding": padding}
        self.conv = conv(channels, out, 3, dimensions=settings.dimensions, **options) if convolution else None

    def __call__(self, x: Image) -> Image:
        if self.conv is None:
            return upsample(x, self.kernel)
        if self.kernel == NAIVE and not self.fir:
            return convolve_upsampled(self.conv, x)
        return self.conv(upsample(x, self.kernel, border=1))


class Downsample(nnx.Module):
    """Resampling by 1/2, with a convolution where `convolution`: of stride 2, after the filter where `fir`."""

    def __init__(self, channels: int, out: int, settings: BlockSettings, *, convolution: bool, rngs: nnx.Rngs) -> None:
        self.fir, self.kernel = settings.fir, settings.fir_kernel if settings.fir else NAIVE
        padding: Any = "VALID" if settings.fir else ((0, 1),) * settings.dimensions
        options = {"dtype": DTYPES[settings.dtype], "rngs": rngs, "padding": padding, "strides": 2}
        self.conv = conv(channels, out, 3, dimensions=settings.dimensions, **options) if convolution else None

    def __call__(self, x: Image) -> Image:
        if self.conv is None:
            return downsample(x, self.kernel)
        if self.fir:
            taps = len(self.kernel)
            x = smooth(x, self.kernel, before=(taps + 1) // 2, after=taps // 2)
        return self.conv(x)


class Stage(nnx.Module):
    """One resolution of the way down or up: blocks with attention, then what changes the resolution.

    attention: after each block on the way down, after the last on the way up. between: resamples, or None.
    """

    def __init__(self, blocks: list[Any], attention: list[Any], between: Any) -> None:
        self.blocks, self.attention, self.between = nnx.List(blocks), nnx.List(attention), between


class Tail(nnx.Module):
    """norm, φ, convolution."""

    def __init__(self, channels: int, out: int, settings: BlockSettings, *, scale: float, rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        self.activation = ACTIVATIONS[settings.activation]
        self.norm = GroupNorm(channels, groups=settings.groups or None, dtype=dtype)
        options: dict[str, Any] = {"dimensions": settings.dimensions, "dtype": dtype, "rngs": rngs}
        self.conv = conv(channels, out, 3, scale=scale, **options)

    def __call__(self, h: Image) -> Image:
        return self.conv(self.activation(self.norm(h)))


class Attended(nnx.Module):
    """Self-attention, attention to the condition's tokens where the network takes some, and over time in a video."""

    def __init__(self, channels: int, settings: BlockSettings, *, rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        self.own = Attention(channels, settings, rngs=rngs)
        if settings.token_features:
            self.cross = CrossAttention(channels, settings.token_features, dtype=dtype, rngs=rngs)
        frames = settings.frames
        self.over_time = AttentionOverTime(channels, frames, dtype=dtype, rngs=rngs) if frames else None

    def __call__(self, h: Image, tokens: Any) -> Image:
        h = self.own(h)
        h = h if tokens is None else self.cross(h, *tokens)
        return h if self.over_time is None else self.over_time(h)
