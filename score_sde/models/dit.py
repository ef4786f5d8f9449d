r"""DiT (Peebles & Xie 2023), whose network is also that of SiT (Ma et al. 2024), for images, audio and video.

    tokens      W patches(x) + fixed positions (sin-cos), or rotary positions in each attention
    embedding   e = W₂ swish(W₁ γ(noise condition)) + condition
    block       (a, b, c, a', b', c') = W swish(e), zero at first (adaLN-zero)
                x ← x + c attention((1 + b) norm x + a)
                x ← x + attention to the condition's tokens, where it has some
                x ← x + c' feed-forward((1 + b') norm x + a')
    output      patches of W((1 + b) norm x + a), all zero at first

Video has factorised attention: over the patches of a frame, then, in `over_time`, over the frames at each place, with
rotary positions in time (as Latte, Ma et al. 2024, by layers of its own), so that an image network's weights inflate.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.models import initializers
from score_sde.models.attention import CrossAttention
from score_sde.models.conditioning import ConditionEmbedding
from score_sde.models.layers import DTYPES, Dtype, dense, rematerialised
from score_sde.models.positions import Rotation, rotation, sin_cos
from score_sde.models.transformer import (
    FeedForward,
    LayerNorm,
    Modulation,
    SelfAttention,
    Size,
    Tokens,
    Transformer,
    check_image_or_audio,
    cos_sin_embedding,
    from_patches,
    to_patches,
)
from score_sde.models.video import Frames, check_video, over_time
from score_sde.typing import Condition, Data, WithVariance

DIT_SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}
POSITIONS = ("sincos", "rotary")
NOISE_FEATURES = 256  # of the noise condition, before the network's own width
SMALL, ZEROS = initializers.normal(0.02), initializers.zeros

Embedding = Float[Array, "batch width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyDiT(Transformer):
    """Settings of every DiT.

    Those of `Transformer`, and
    learned_variance: the network has twice the channels, as published: its prediction's, and those of the variance.
    """

    SIZES: ClassVar[dict[str, Size]] = DIT_SIZES
    POSITIONS: ClassVar[tuple[str, ...]] = POSITIONS

    size: str = "S"
    positions: str = "sincos"
    learned_variance: bool = False

    @property
    def learns_step_variance(self) -> bool:
        return self.learned_variance


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiT(AnyDiT):
    """Settings of the network for images (height, width, channels) and audio (time, channels); see `AnyDiT`."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is that of an image or audio that patches fit into."""
        check_image_or_audio("dit", shape)
        self.check_grid("dit", shape[:-1])

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "DiTModule":
        """The module for samples of `shape`."""
        return DiTModule(self, shape, rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoDiT(AnyDiT):
    """Settings of the network for video (frames, height, width, channels); see `AnyDiT`. Patches are of one frame."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is that of a video that patches fit into."""
        check_video("video_dit", shape)
        self.check_grid("video_dit", shape[1:-1])

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> Frames:
        """The module for samples of `shape`."""
        return Frames(DiTModule(self, shape[1:], rngs, frames=shape[0]))


class ModulatedOverTime(nnx.Module):
    """x + c attention((1 + b) norm x + a) over the frames at each place; the identity at first."""

    def __init__(self, width: int, heads: int, frames: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.frames = frames
        self.norm = LayerNorm(width, dtype=dtype)
        self.modulation = Modulation(width, 3, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(self, x: Tokens, embedding: Embedding) -> Tokens:
        shift, scale, gate = self.modulation(embedding, x.ndim)
        turn = rotation((self.frames,), x.shape[-1] // self.attention.heads)
        attended = lambda sequences: self.attention(sequences, turn)
        return x + gate * over_time(attended, self.norm(x) * (1 + scale) + shift, self.frames)


class Block(nnx.Module):
    """See the module. frames: of the video whose frames are folded into the batch; 0 where there is none."""

    def __init__(self, settings: AnyDiT, frames: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        _, width, heads = settings.dimensions
        self.norm = LayerNorm(width, dtype=dtype)
        self.modulation = Modulation(width, 6, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        if settings.token_features:
            norm = LayerNorm(width, dtype=dtype)
            self.cross = CrossAttention(width, settings.token_features, heads=heads, norm=norm, **options)
        self.over_time = ModulatedOverTime(width, heads, frames, **options) if frames else None
        self.feed_forward = FeedForward(width, approximate=True, **options)

    def __call__(self, x: Tokens, embedding: Embedding, turn: Rotation | None, tokens: Any) -> Tokens:
        shift, scale, gate, shift_out, scale_out, gate_out = self.modulation(embedding, x.ndim)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift, turn)
        if tokens is not None:
            x = self.cross(x, *tokens)
        if self.over_time is not None:
            x = self.over_time(x, embedding)
        return x + gate_out * self.feed_forward(self.norm(x) * (1 + scale_out) + shift_out)


class DiTModule(nnx.Module):
    """The network itself, of any number of axes; see `AnyDiT` for its settings."""

    def __init__(self, settings: AnyDiT, shape: tuple[int, ...], rngs: nnx.Rngs, frames: int = 0) -> None:
        depth, width, _ = settings.dimensions
        options: dict[str, Any] = {"dtype": DTYPES[settings.dtype], "rngs": rngs}
        *sides, channels = shape
        self.settings = settings
        self.grid = settings.grid(tuple(sides))
        values = settings.patch ** len(self.grid)
        self.patches_in = dense(values * (channels + settings.image_channels), width, **options)
        self.embed_in = dense(NOISE_FEATURES, width, init=SMALL, **options)
        self.embed_out = dense(width, width, init=SMALL, **options)
        self.condition = ConditionEmbedding(settings, width, label_init=SMALL, **options)
        self.blocks = nnx.List([Block(settings, frames, **options) for _ in range(depth)])
        self.norm = LayerNorm(width, dtype=options["dtype"])
        self.modulation = Modulation(width, 2, **options)
        outputs = channels * (2 if settings.learned_variance else 1)
        self.patches_out = dense(width, values * outputs, init=ZEROS, **options)

    def __call__(
        self,
        x: Data,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Data | WithVariance:
        """The raw prediction, float32, of the shape of x, with its variance where that is learned.

        There is no dropout: rng is not used, in training neither.
        """
        settings, turn = self.settings, None
        embedding = self._embedding(noise_condition, condition)
        tokens = self.condition.tokens(condition, len(x)) if settings.token_features else None
        h = self.patches_in(to_patches(self.condition.with_image(x, condition), settings.patch))
        if settings.positions == "sincos":
            h = h + jnp.asarray(sin_cos(self.grid, h.shape[-1]), h.dtype)[None]
        elif settings.positions == "rotary":
            turn = rotation(self.grid, h.shape[-1] // settings.dimensions.heads)
        for block in self.blocks:
            call = lambda h, block=block: block(h, embedding, turn, tokens)
            h = rematerialised(call, settings.remat)(h)
        shift, scale = self.modulation(embedding, h.ndim)
        output = from_patches(self.patches_out(self.norm(h) * (1 + scale) + shift), self.grid, settings.patch)
        output = output.astype(jnp.float32)
        return WithVariance(*jnp.split(output, 2, axis=-1)) if settings.learned_variance else output

    def _embedding(self, noise_condition: Float[Array, "batch"], condition: Condition) -> Embedding:
        """swish of the embedding, which is all that the blocks use of it."""
        features = cos_sin_embedding(noise_condition, NOISE_FEATURES)
        embedding = self.embed_out(jax.nn.swish(self.embed_in(features)))
        return jax.nn.swish(self.condition.add_to(embedding, condition))
