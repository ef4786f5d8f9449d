r"""U-ViT (Bao et al. 2023): everything is a token, and blocks are joined over the middle as in a U-Net.

    tokens      [condition, γ(noise condition), W patches(x)] + learnt positions, and W of the condition's tokens
    block       x ← x + attention(norm x);  x ← x + feed-forward(norm x)
    way in      depth/2 blocks, each of whose outputs is kept;  a block in the middle
    way out     depth/2 blocks, before each of them x ← W [x, the kept one, last first]
    output      W norm x of the patches' tokens, and where `final_convolution` a convolution of the image

Learnt positions are of one resolution, that of the shape built for; sin-cos and rotary ones are of any.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.errors import Checks
from score_sde.models import initializers
from score_sde.models.conditioning import ConditionEmbedding
from score_sde.models.layers import DTYPES, Dtype, conv, dense, parameter, rematerialised
from score_sde.models.positions import Rotation, rotation, sin_cos
from score_sde.models.transformer import (
    FeedForward,
    LayerNorm,
    SelfAttention,
    Size,
    Tokens,
    Transformer,
    check_image_or_audio,
    cos_sin_embedding,
    from_patches,
    to_patches,
)
from score_sde.typing import Condition, Data

UVIT_SIZES = {
    "small": Size(12, 512, 8),
    "mid": Size(16, 768, 12),
    "large": Size(20, 1024, 16),
    "huge": Size(28, 1152, 16),
}
POSITIONS = ("learnt", "sincos", "rotary")
SMALL = initializers.normal(0.02)
UNIFORM = initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's own, in ±1/√fan-in


@dataclasses.dataclass(frozen=True, kw_only=True)
class UViT(Transformer):
    """Settings of the network for images (height, width, channels) and audio (time, channels).

    Those of `Transformer`, and

    depth: without the block in the middle, even. final_convolution: whether a 3×3 convolution comes last.
    """

    SIZES: ClassVar[dict[str, Size]] = UVIT_SIZES
    POSITIONS: ClassVar[tuple[str, ...]] = POSITIONS

    size: str = "small"
    positions: str = "learnt"
    final_convolution: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        with Checks() as check:
            check.that(self.depth % 2 == 0, f"depth must be even, not {self.depth}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is that of an image or audio that patches fit into."""
        check_image_or_audio("uvit", shape)
        self.check_grid("uvit", shape[:-1])

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "UViTModule":
        """The module for samples of `shape`."""
        return UViTModule(self, shape, rngs)


class Block(nnx.Module):
    """See the module. joined: whether it takes a kept output beside that of the block before."""

    def __init__(self, settings: UViT, *, joined: bool, dtype: Dtype, rngs: nnx.Rngs) -> None:
        _, width, heads = settings.dimensions
        options: dict[str, Any] = {"init": SMALL, "dtype": dtype, "rngs": rngs}
        self.join: Any = dense(2 * width, width, **options) if joined else None
        self.norm_in = LayerNorm(width, learnt=True, epsilon=1e-5, dtype=dtype)
        self.attention = SelfAttention(width, heads, bias=False, **options)
        self.norm_out = LayerNorm(width, learnt=True, epsilon=1e-5, dtype=dtype)
        self.feed_forward = FeedForward(width, approximate=False, **options)

    def __call__(
        self, x: Tokens, kept: Tokens | None, turn: Rotation | None, mask: Bool[Array, "batch tokens"] | None
    ) -> Tokens:
        if kept is not None:
            x = self.join(jnp.concatenate([x, kept], axis=-1))
        x = x + self.attention(self.norm_in(x), turn, mask)
        return x + self.feed_forward(self.norm_out(x))


class UViTModule(nnx.Module):
    """The network itself; see `UViT` for its settings."""

    def __init__(self, settings: UViT, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        depth, width, _ = settings.dimensions
        dtype: Any = DTYPES[settings.dtype]
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        *sides, channels = shape
        self.settings = settings
        self.grid = settings.grid(tuple(sides))
        values = settings.patch ** len(self.grid)
        self.patches_in = dense(values * (channels + settings.image_channels), width, init=UNIFORM, **options)
        labels = initializers.normal(1.0)
        self.condition = ConditionEmbedding(settings, width, label_init=labels, **options)
        self.before = 1 + settings.has_features  # tokens before those of the patches
        if settings.token_features:
            self.tokens_in = dense(settings.token_features, width, init=SMALL, **options)
        placed = self.before + (math.prod(self.grid) if settings.positions == "learnt" else 0)
        self.positions = parameter(SMALL(rngs.params(), (placed, width)), "tokens", "out")
        block = lambda joined: Block(settings, joined=joined, **options)
        self.way_in = nnx.List([block(False) for _ in range(depth // 2)])
        self.middle = block(False)
        self.way_out = nnx.List([block(True) for _ in range(depth // 2)])
        self.norm = LayerNorm(width, learnt=True, epsilon=1e-5, dtype=dtype)
        self.patches_out = dense(width, values * channels, init=SMALL, **options)
        last = {"init": UNIFORM, "dimensions": len(sides), **options}
        self.final = conv(channels, channels, 3, **last) if settings.final_convolution else None

    def __call__(
        self,
        x: Data,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Data:
        """The raw prediction, float32, of the shape of x. There is no dropout: rng is not used, in training neither."""
        h, mask = self._tokens(x, noise_condition, condition)
        patches = math.prod(self.grid)
        turn = self._turn(h.shape[1]) if self.settings.positions == "rotary" else None

        def run(block: Block, h: Tokens, kept: Tokens | None = None) -> Tokens:
            call = lambda h, kept: block(h, kept, turn, mask)
            return rematerialised(call, self.settings.remat)(h, kept)

        kept = []
        for block in self.way_in:
            h = run(block, h)
            kept.append(h)
        h = run(self.middle, h)
        for block in self.way_out:
            h = run(block, h, kept.pop())
        h = self.patches_out(self.norm(h[:, self.before : self.before + patches]))
        output = from_patches(h, self.grid, self.settings.patch)
        return (output if self.final is None else self.final(output)).astype(jnp.float32)

    def _tokens(
        self, x: Data, noise_condition: Float[Array, "batch"], condition: Condition
    ) -> tuple[Tokens, Bool[Array, "batch tokens"] | None]:
        """All tokens with their positions, and which of them count; None where all do."""
        settings, batch = self.settings, len(x)
        patches = self.patches_in(to_patches(self.condition.with_image(x, condition), settings.patch))
        noise = cos_sin_embedding(noise_condition, patches.shape[-1]).astype(patches.dtype)
        told = self.condition.features(condition, batch)
        singles = [noise] if told is None else [told, noise]
        if settings.positions == "sincos":
            patches = patches + jnp.asarray(sin_cos(self.grid, patches.shape[-1]), patches.dtype)[None]
        h = jnp.concatenate([*(single[:, None] for single in singles), patches], axis=1)
        positions = jnp.broadcast_to(self.positions[...], (batch, *self.positions.shape)).astype(h.dtype)
        h = h.at[:, : positions.shape[1]].add(positions)
        if not settings.token_features:
            return h, None
        tokens, counts = self.condition.tokens(condition, batch)
        mask = jnp.concatenate([jnp.ones(h.shape[:2], bool), counts], axis=1)
        return jnp.concatenate([h, self.tokens_in(tokens)], axis=1), mask

    def _turn(self, tokens: int) -> Rotation:
        """That of the patches; other tokens, which have no place, are not turned."""
        cos, sin = rotation(self.grid, self.settings.dimensions.width // self.settings.dimensions.heads)
        around = ((self.before, tokens - self.before - len(cos)), (0, 0))
        return np.pad(cos, around, constant_values=1.0), np.pad(sin, around)
