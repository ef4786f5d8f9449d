r"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021, appendix H, and with other settings DDPM's (Ho et al. 2020).

    embedding   e = W₂ φ(W₁ γ(noise condition)) + condition
    down        blocks and attention at each resolution, then R = down (BigGAN) or a convolution of stride 2 (DDPM)
    up          the same with the skip connections concatenated, one block more a resolution

The blocks, φ and the resampling R are those of `unet_blocks`. NCSN++ joins the image itself, resampled, to each
resolution (`progressive_input`), and may build the output up over the resolutions (`progressive`).
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.models.conditioning import ConditionEmbedding
from score_sde.models.layers import (
    DTYPES,
    Dtype,
    FourierEmbedding,
    conv,
    dense,
    pointwise,
    positional_embedding,
    rematerialised,
)
from score_sde.models.resample import NAIVE, downsample, upsample
from score_sde.models.sigmas import over
from score_sde.models.unet_blocks import (
    ACTIVATIONS,
    Attended,
    Block,
    BlockSettings,
    Downsample,
    Embedding,
    Image,
    Stage,
    Tail,
    Upsample,
)
from score_sde.typing import Condition


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNpp(BlockSettings):
    """Settings of the network, those of `UNet`."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        self.check_image_shape("ncsnpp", shape)

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "NCSNppModule":
        """The module for samples of `shape`."""
        return NCSNppModule(self, shape, rngs)


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
        skips, down = [width], []
        join: list[Any] = []
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
            join.append(pointwise(pyramid, channels, dtype=DTYPES[settings.dtype], rngs=rngs))
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
        numbers = itertools.count()

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
        output = self.tail(h) if pyramid is None or self.settings.progressive == "residual" else pyramid
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
        """φ of the embedding, which is all that the blocks use of it."""
        settings, activation = self.settings, ACTIVATIONS[self.settings.activation]
        if not settings.noise_conditional:
            told = self.condition.features(condition, len(noise_condition))
            return None if told is None else activation(told)
        if settings.embedding == "positional":
            features = positional_embedding(noise_condition, settings.widths[0])
        else:
            log = settings.embedding == "log_fourier"
            features = self.fourier(jnp.log(noise_condition) if log else noise_condition)
        if settings.condition_first:
            features = self.condition.add_to(features, condition)
        embedding = self.embed_out(activation(self.embed_in(features)))
        return activation(embedding if settings.condition_first else self.condition.add_to(embedding, condition))
