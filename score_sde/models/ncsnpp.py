r"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021, appendix H, and with other settings DDPM's (Ho et al. 2020).

    embedding   e = W₂ swish(W₁ γ(noise condition)) + condition
    block       h = conv(R swish(norm x)) + W swish(e);  h = conv(dropout swish(norm h));  (R x + h)/√2
    down        blocks and attention at each resolution, then R = down (BigGAN) or a convolution of stride 2 (DDPM)
    up          the same with the skip connections concatenated, one block more a resolution

R is naive or FIR resampling (`resample`). NCSN++ joins the image itself, resampled, to each resolution
(`progressive_input`), and may build the output up over the resolutions (`progressive`). All names of settings are
those of score_sde where it has one.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import Checks, UserError
from score_sde.models.attention import CrossAttention, attend
from score_sde.models.conditioning import ConditionEmbedding, check_image
from score_sde.models.layers import (
    DTYPES,
    Dtype,
    FourierEmbedding,
    GroupNorm,
    across,
    conv,
    dense,
    positional_embedding,
    rematerialised,
)
from score_sde.models.resample import NAIVE, downsample, smooth, upsample
from score_sde.models.sigmas import Sigmas, over
from score_sde.models.video import AttentionOverTime
from score_sde.typing import Condition

Image = Float[Array, "batch *space channels"]
Embedding = Float[Array, "batch features"]
SMALL_SCALE = 0.1  # of the initialiser of 1×1 projections, as in DDPM

EMBEDDINGS = ("positional", "fourier", "log_fourier")
BLOCKS = ("biggan", "ddpm")
PROGRESSIVE = ("none", "output_skip", "residual")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
COMBINE = ("sum", "cat")


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
    groups: of every normalisation, 0 for min(C/4, 32). dtype: of the computation, "float32" or "bfloat16";
    parameters are float32 always. remat: activations within blocks are recomputed in the backward pass.
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
    groups: int = 0
    dropout: float = 0.1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("embedding", self.embedding, EMBEDDINGS)
            check.name("block", self.block, BLOCKS)
            check.name("progressive", self.progressive, PROGRESSIVE)
            check.name("progressive_input", self.progressive_input, PROGRESSIVE_INPUT)
            check.name("progressive_combine", self.progressive_combine, COMBINE)
            check.name("dtype", self.dtype, DTYPES)
            width = self.channels >= 8 and self.channels % 4 == 0
            check.that(width, f"channels must be a multiple of 4 and at least 8, not {self.channels}")
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
        check_image(network, shape, 2 ** (len(self.channel_multipliers) - 1))
        heights = [shape[0] // 2**level for level in range(len(self.channel_multipliers))]
        unknown = [height for height in self.attention_resolutions if height not in heights]
        if unknown:
            raise UserError(f"{network}: attention_resolutions {unknown} are none of the heights {heights} it works at")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNpp(UNet):
    """Settings of the network, those of `UNet`; what else the module needs is not for a config.

    dimensions: axes between batch and channels. frames: of the videos whose frames are folded into the batch, or 0.
    """

    dimensions: int = dataclasses.field(default=2, metadata={"setting": False})
    frames: int = dataclasses.field(default=0, metadata={"setting": False})

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        self.check_image_shape("ncsnpp", shape)

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "NCSNppModule":
        """The module for samples of `shape`."""
        return NCSNppModule(self, shape, rngs)


class Attention(nnx.Module):
    """Self-attention over the pixels, single head, residual (DDPM)."""

    def __init__(self, channels: int, settings: NCSNpp, *, rngs: nnx.Rngs) -> None:
        dtype = DTYPES[settings.dtype]
        self.norm = GroupNorm(channels, groups=settings.groups or None, dtype=dtype)
        # Three projections of fan-out C in one of 3C: twice the scale makes the variance that of each.
        axes = {"scale": 2 * SMALL_SCALE, "axes": ("in", "heads")}
        self.query_key_value = dense(channels, 3 * channels, **axes, dtype=dtype, rngs=rngs)
        self.output = dense(channels, channels, scale=0.0, axes=("heads", "out"), dtype=dtype, rngs=rngs)
        self.rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0

    def __call__(self, x: Image) -> Image:
        batch, channels = x.shape[0], x.shape[-1]
        projected = self.query_key_value(self.norm(x)).reshape(batch, -1, 1, 3 * channels)
        query, key, value = jnp.split(projected, 3, axis=-1)
        return (x + self.output(attend(query, key, value).reshape(x.shape))) * self.rescale


class Block(nnx.Module):
    """A residual block; see the module. resample: "none", "up" or "down"."""

    def __init__(
        self, in_channels: int, out_channels: int, settings: NCSNpp, resample: str = "none", *, rngs: nnx.Rngs
    ) -> None:
        dtype: Any = DTYPES[settings.dtype]
        groups = settings.groups or None
        self.resample, self.kernel = resample, settings.fir_kernel if settings.fir else NAIVE
        self.rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0
        self.norm_in = GroupNorm(in_channels, groups=groups, dtype=dtype)
        options: dict[str, Any] = {"dimensions": settings.dimensions, "dtype": dtype, "rngs": rngs}
        self.conv_in = conv(in_channels, out_channels, 3, **options)
        told = settings.noise_conditional or settings.classes or settings.vector_features or settings.augment_features
        self.embedding = dense(settings.widths[1], out_channels, dtype=dtype, rngs=rngs) if told else None
        self.norm_out = GroupNorm(out_channels, groups=groups, dtype=dtype)
        self.dropout = nnx.Dropout(settings.dropout)
        self.conv_out = conv(out_channels, out_channels, 3, scale=0.0, **options)
        changed = in_channels != out_channels or resample != "none"
        scale = 1.0 if settings.block == "biggan" else SMALL_SCALE
        # A 1×1 convolution as a matrix: XLA would otherwise move it into the layout of convolutions and back.
        self.skip = dense(in_channels, out_channels, scale=scale, dtype=dtype, rngs=rngs) if changed else None

    def __call__(self, x: Image, embedding: Embedding | None, *, train: bool, rng: jax.Array | None) -> Image:
        h = self.conv_in(self._resampled(jax.nn.swish(self.norm_in(x))))
        if self.embedding is not None:
            h = h + across(self.embedding(embedding), h.ndim)
        h = jax.nn.swish(self.norm_out(h))
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
        offset = across(self.skip.bias[...][None].astype(x.dtype), x.ndim)
        return self._resampled(self.skip(x) - offset) + offset


class Upsample(nnx.Module):
    """Resampling by 2, with a convolution where `convolution`; with FIR the two see the same zeros outside."""

    def __init__(self, channels: int, out: int, settings: NCSNpp, *, convolution: bool, rngs: nnx.Rngs) -> None:
        self.fir, self.kernel = settings.fir, settings.fir_kernel if settings.fir else NAIVE
        padding = "VALID" if settings.fir else "SAME"
        options = {"dtype": DTYPES[settings.dtype], "rngs": rngs, "padding": padding}
        self.conv = conv(channels, out, 3, dimensions=settings.dimensions, **options) if convolution else None

    def __call__(self, x: Image) -> Image:
        if self.conv is None:
            return upsample(x, self.kernel)
        return self.conv(upsample(x, self.kernel, border=1 if self.fir else 0))


class Downsample(nnx.Module):
    """Resampling by 1/2, with a convolution where `convolution`: of stride 2, after the filter where `fir`."""

    def __init__(self, channels: int, out: int, settings: NCSNpp, *, convolution: bool, rngs: nnx.Rngs) -> None:
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
    """norm, swish, convolution."""

    def __init__(self, channels: int, out: int, settings: NCSNpp, *, scale: float, rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        self.norm = GroupNorm(channels, groups=settings.groups or None, dtype=dtype)
        options: dict[str, Any] = {"dimensions": settings.dimensions, "dtype": dtype, "rngs": rngs}
        self.conv = conv(channels, out, 3, scale=scale, **options)

    def __call__(self, h: Image) -> Image:
        return self.conv(jax.nn.swish(self.norm(h)))


class Attended(nnx.Module):
    """Self-attention, attention to the condition's tokens where the network takes some, and over time in a video."""

    def __init__(self, channels: int, settings: NCSNpp, *, rngs: nnx.Rngs) -> None:
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


class NCSNppModule(nnx.Module):
    """The network itself; see `NCSNpp` for its settings."""

    def __init__(self, settings: NCSNpp, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        width = settings.channels
        self.settings = settings
        self._build_embedding(settings, dtype, rngs)
        inputs = shape[-1] + settings.image_channels
        self.conv_in = conv(inputs, width, 3, dimensions=settings.dimensions, dtype=dtype, rngs=rngs)
        channels, skips = self._build_down(settings, shape[0], inputs, rngs)
        self.middle_in = Block(channels, channels, settings, rngs=rngs)
        self.middle_attention = Attended(channels, settings, rngs=rngs)
        self.middle_out = Block(channels, channels, settings, rngs=rngs)
        channels = self._build_up(settings, shape, channels, skips, rngs)
        if settings.progressive != "output_skip":
            self.tail = Tail(channels, shape[-1], settings, scale=0.0, rngs=rngs)

    def _build_embedding(self, settings: NCSNpp, dtype: Dtype, rngs: nnx.Rngs) -> None:
        noise, features = settings.widths
        if settings.noise_conditional:
            if settings.embedding != "positional":
                self.fourier = FourierEmbedding(noise, settings.fourier_scale, rngs=rngs)
            self.embed_in = dense(noise, features, dtype=dtype, rngs=rngs)
            self.embed_out = dense(features, features, dtype=dtype, rngs=rngs)
        told = noise if settings.condition_first else features
        self.condition = ConditionEmbedding(settings, told, dtype=dtype, rngs=rngs)

    def _build_down(self, settings: NCSNpp, height: int, inputs: int, rngs: nnx.Rngs) -> tuple[int, list[int]]:
        """The way down. Returns the channels at its end and those of all skip connections."""
        width, channels, pyramid = settings.channels, settings.channels, inputs
        skips, down, join = [width], [], []
        for level, multiplier in enumerate(settings.channel_multipliers):
            blocks, attention = [], []
            for _ in range(settings.blocks_per_resolution):
                blocks.append(Block(channels, width * multiplier, settings, rngs=rngs))
                channels = width * multiplier
                attends = height in settings.attention_resolutions
                attention.append(Attended(channels, settings, rngs=rngs) if attends else None)
                skips.append(channels)
            between: Any = None
            if level < len(settings.channel_multipliers) - 1:
                between = self._between("down", channels, settings, rngs)
                channels, pyramid = self._join_input(settings, channels, pyramid, join, rngs)
                skips.append(channels)
                height //= 2
            down.append(Stage(blocks, attention, between))
        self.down, self.join = nnx.List(down), nnx.List(join)
        return channels, skips

    @staticmethod
    def _join_input(settings: NCSNpp, channels: int, pyramid: int, join: list[Any], rngs: nnx.Rngs) -> tuple[int, int]:
        """Adds what feeds the image in again; the channels after it, and those of the image's pyramid."""
        if settings.progressive_input == "input_skip":
            join.append(dense(pyramid, channels, dtype=DTYPES[settings.dtype], rngs=rngs))
            return channels * (2 if settings.progressive_combine == "cat" else 1), pyramid
        if settings.progressive_input == "residual":
            join.append(Downsample(pyramid, channels, settings, convolution=True, rngs=rngs))
            return channels, channels
        return channels, pyramid

    @staticmethod
    def _between(way: str, channels: int, settings: NCSNpp, rngs: nnx.Rngs) -> Any:
        if settings.block == "biggan":
            return Block(channels, channels, settings, way, rngs=rngs)
        kind = Upsample if way == "up" else Downsample
        return kind(channels, channels, settings, convolution=settings.resample_convolution, rngs=rngs)

    def _build_up(
        self, settings: NCSNpp, shape: tuple[int, ...], channels: int, skips: list[int], rngs: nnx.Rngs
    ) -> int:
        """The way up. Returns the channels at its end."""
        width, pyramid, up, grow = settings.channels, 0, [], []
        last_level = len(settings.channel_multipliers) - 1
        for level, multiplier in reversed(list(enumerate(settings.channel_multipliers))):
            blocks: list[Any] = []
            for _ in range(settings.blocks_per_resolution + 1):
                blocks.append(Block(channels + skips.pop(), width * multiplier, settings, rngs=rngs))
                channels = width * multiplier
            attends = shape[0] // 2**level in settings.attention_resolutions
            attention = [Attended(channels, settings, rngs=rngs)] if attends else []
            if settings.progressive == "output_skip":
                grow.append(Tail(channels, shape[-1], settings, scale=0.0, rngs=rngs))
            elif settings.progressive == "residual":
                first = level == last_level
                options = {"rngs": rngs, **({"scale": 1.0} if first else {"convolution": True})}
                kind: Any = Tail if first else Upsample
                grow.append(kind(channels if first else pyramid, channels, settings, **options))
                pyramid = channels
            between = self._between("up", channels, settings, rngs) if level else None
            up.append(Stage(blocks, attention, between))
        self.up, self.grow = nnx.List(up), nnx.List(grow)
        return channels

    def __call__(
        self,
        x: Image,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Image:
        """The raw prediction, float32, of the shape of x. rng is needed where train and dropout > 0."""
        embedding = self._embedding(noise_condition, condition)
        tokens = self.condition.tokens(condition, len(x)) if self.settings.token_features else None
        numbers = iter(range(1_000_000))

        def run(block: Any, h: Array) -> Array:
            if not isinstance(block, Block):
                return block(h)
            key = None if rng is None else jax.random.fold_in(rng, next(numbers))
            call = lambda h, e: block(h, e, train=train, rng=key)
            return rematerialised(call, self.settings.remat)(h, embedding)

        def attended(attention: Attended | None, h: Array) -> Array:
            if attention is None:
                return h
            return rematerialised(lambda h: attention(h, tokens), self.settings.remat)(h)

        h, skips = self._down(self.condition.with_image(self.settings.to_centre(x), condition), run, attended)
        h = attended(self.middle_attention, run(self.middle_in, h))
        h, pyramid = self._up(run(self.middle_out, h), skips, run, attended)
        output = pyramid if self.settings.progressive == "output_skip" else self.tail(h)
        return self._scaled(output.astype(jnp.float32), noise_condition)

    def _scaled(self, output: Image, noise_condition: Float[Array, "batch"]) -> Image:
        settings = self.settings
        if not settings.scale_by_sigma:
            return output
        told = settings.embedding != "positional"
        return over(output, noise_condition if told else settings.sigma_of_level(noise_condition))

    def _down(self, x: Image, run: Any, attended: Any) -> tuple[Image, list[Image]]:
        settings, pyramid, h = self.settings, x, self.conv_in(x)
        rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0
        skips, join = [h], iter(self.join)
        for stage in self.down:
            for block, attention in zip(stage.blocks, stage.attention, strict=True):
                h = attended(attention, run(block, h))
                skips.append(h)
            if stage.between is None:
                continue
            h = run(stage.between, h)
            if settings.progressive_input == "input_skip":
                pyramid = downsample(pyramid, settings.fir_kernel if settings.fir else NAIVE)
                own = next(join)(pyramid)
                h = own + h if settings.progressive_combine == "sum" else jnp.concatenate([own, h], axis=-1)
            elif settings.progressive_input == "residual":
                pyramid = h = (next(join)(pyramid) + h) * rescale
            skips.append(h)
        return h, skips

    def _up(self, h: Image, skips: list[Image], run: Any, attended: Any) -> tuple[Image, Image | None]:
        settings, pyramid = self.settings, None
        rescale = math.sqrt(0.5) if settings.skip_rescale else 1.0
        grow = iter(self.grow)
        for stage in self.up:
            for block in stage.blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
            for attention in stage.attention:
                h = attended(attention, h)
            if settings.progressive == "output_skip":
                own = next(grow)(h)
                kernel = settings.fir_kernel if settings.fir else NAIVE
                pyramid = own if pyramid is None else upsample(pyramid, kernel) + own
            elif settings.progressive == "residual":
                if pyramid is None:
                    pyramid = next(grow)(h)
                else:
                    pyramid = h = (next(grow)(pyramid) + h) * rescale
            h = h if stage.between is None else run(stage.between, h)
        return h, pyramid

    def _embedding(self, noise_condition: Float[Array, "batch"], condition: Condition) -> Embedding | None:
        """swish of the embedding, which is all that the blocks use of it."""
        settings, batch = self.settings, len(noise_condition)
        told: Any = self.condition.features(condition, batch)
        if settings.noise_conditional:
            if settings.embedding == "positional":
                features = positional_embedding(noise_condition, settings.widths[0])
            else:
                log = settings.embedding == "log_fourier"
                features = self.fourier(jnp.log(noise_condition) if log else noise_condition)
            if settings.condition_first:
                features, told = features + jnp.asarray(told, jnp.float32), 0.0
            told = self.embed_out(jax.nn.swish(self.embed_in(features))) + told
        return None if isinstance(told, float) else jax.nn.swish(told)
