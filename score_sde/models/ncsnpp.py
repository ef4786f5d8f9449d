r"""DDPM++/NCSN++: the U-Net of Song et al. 2021, appendix H, without FIR resampling and progressive growing.

BigGAN residual blocks with the skip sum rescaled by 1/√2, attention at chosen resolutions and at the bottom,
concatenating skip connections, positional (DDPM++) or Fourier (NCSN++) noise embedding.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import Checks, UserError
from score_sde.models.layers import (
    AttentionBlock,
    FourierEmbedding,
    GroupNorm,
    ResidualBlock,
    conv,
    dense,
    positional_embedding,
)
from score_sde.typing import Condition

EMBEDDINGS = ("positional", "fourier")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNpp:
    """Settings of the network.

    channels: width at full resolution, times `channel_multipliers` below. attention_resolutions: heights in
    pixels at which attention follows each block. fourier_scale: σ of the Fourier embedding's frequencies.
    classes: how many labels the condition `{"label": …}` may take, 0 for none; label −1, or no condition, is "no
    label". dtype: of the computation, "float32" or "bfloat16"; parameters are float32 always.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_resolution: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    embedding: str = "positional"
    fourier_scale: float = 16.0
    classes: int = 0
    dropout: float = 0.1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("embedding", self.embedding, EMBEDDINGS)
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
            check.that(0 <= self.classes <= 10**6, f"classes must lie in [0, 1e6], not {self.classes}")
            check.that(self.fourier_scale > 0, f"fourier_scale must be positive, not {self.fourier_scale}")
            check.that(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        factor = 2 ** (len(self.channel_multipliers) - 1)
        if len(shape) != 3:
            raise UserError(f"ncsnpp takes images (height, width, channels), not samples of shape {shape}")
        if shape[0] % factor or shape[1] % factor:
            near = tuple(max(factor, round(side / factor) * factor) for side in shape[:2])
            raise UserError(
                f"ncsnpp with {len(self.channel_multipliers)} channel_multipliers needs sides divisible by "
                f"{factor}, not {shape[0]}x{shape[1]}; the nearest is {near[0]}x{near[1]}"
            )
        heights = [shape[0] // 2**level for level in range(len(self.channel_multipliers))]
        unknown = [height for height in self.attention_resolutions if height not in heights]
        if unknown:
            raise UserError(f"ncsnpp: attention_resolutions {unknown} are none of the heights {heights} it works at")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "NCSNppModule":
        """The module for samples of `shape`."""
        return NCSNppModule(self, shape, rngs)


class NCSNppModule(nnx.Module):
    """The network itself; see `NCSNpp` for its settings."""

    def __init__(self, settings: NCSNpp, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        dtype: Any = DTYPES[settings.dtype]
        width, rescale = settings.channels, math.sqrt(0.5)
        features = 4 * width
        self.settings = settings

        def block(in_channels: int, out_channels: int, resample: str = "none") -> ResidualBlock:
            return ResidualBlock(
                in_channels,
                out_channels,
                features,
                dropout=settings.dropout,
                resample=resample,
                rescale=rescale,
                dtype=dtype,
                rngs=rngs,
            )

        def attention(channels: int, height: int) -> AttentionBlock | None:
            if height not in settings.attention_resolutions:
                return None
            return AttentionBlock(channels, rescale=rescale, dtype=dtype, rngs=rngs)

        if settings.embedding == "fourier":
            self.fourier = FourierEmbedding(width, settings.fourier_scale, rngs=rngs)
        self.embed_in = dense(width, features, dtype=dtype, rngs=rngs)
        self.embed_out = dense(features, features, dtype=dtype, rngs=rngs)
        if settings.classes:
            self.label = nnx.Embed(settings.classes + 1, features, dtype=dtype, rngs=rngs)
        self.conv_in = conv(shape[-1], width, 3, dtype=dtype, rngs=rngs)

        height, skips, channels = shape[0], [width], width
        down: list[list[Any]] = []
        for level, multiplier in enumerate(settings.channel_multipliers):
            if level:
                down.append([block(channels, channels, "down"), None])
                height //= 2
                skips.append(channels)
            for _ in range(settings.blocks_per_resolution):
                down.append([block(channels, width * multiplier), attention(width * multiplier, height)])
                channels = width * multiplier
                skips.append(channels)
        self.down = nnx.List([nnx.List(pair) for pair in down])

        self.middle_in = block(channels, channels)
        self.middle_attention = AttentionBlock(channels, rescale=rescale, dtype=dtype, rngs=rngs)
        self.middle_out = block(channels, channels)

        up: list[Any] = []
        for level, multiplier in reversed(list(enumerate(settings.channel_multipliers))):
            stage: list[Any] = []
            for _ in range(settings.blocks_per_resolution + 1):
                stage.append(block(channels + skips.pop(), width * multiplier))
                channels = width * multiplier
            last = [attention(channels, height), block(channels, channels, "up") if level else None]
            up.append(nnx.List([nnx.List(stage), *last]))
            height *= 2
        self.up = nnx.List(up)

        self.norm_out = GroupNorm(channels, dtype=dtype)
        self.conv_out = conv(channels, shape[-1], 3, scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Float[Array, "batch height width channels"]:
        """The raw prediction, float32, of the shape of x. rng is needed where train and dropout > 0."""
        if condition is not None and not self.settings.classes:
            raise UserError("ncsnpp with classes=0 takes no condition")
        call_number = iter(range(1_000_000))

        def run(block: Any, h: Array) -> Array:
            key = None if rng is None else jax.random.fold_in(rng, next(call_number))
            return block(h, embedding, train=train, rng=key)

        embedding = self._embedding(noise_condition, condition)
        h = self.conv_in(x)
        skips = [h]
        block: Any
        attention: Any
        for block, attention in self.down:
            h = run(block, h)
            h = h if attention is None else attention(h)
            skips.append(h)
        h = run(self.middle_in, h)
        h = run(self.middle_out, self.middle_attention(h))
        for blocks, attention, resample in self.up:
            for block in blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
            h = h if attention is None else attention(h)
            h = h if resample is None else run(resample, h)
        return self.conv_out(jax.nn.swish(self.norm_out(h))).astype(jnp.float32)

    def _embedding(
        self, noise_condition: Float[Array, "batch"], condition: Condition
    ) -> Float[Array, "batch features"]:
        if self.settings.embedding == "fourier":
            features = self.fourier(noise_condition)
        else:
            features = positional_embedding(noise_condition, self.settings.channels)
        embedding = self.embed_out(jax.nn.swish(self.embed_in(features)))
        if self.settings.classes:
            label = jnp.full(noise_condition.shape, -1) if condition is None else condition["label"]
            embedding = embedding + self.label(label + 1)  # row 0 is that of no label
        return embedding
