"""What the transformers share: patches, normalisation, self-attention and feed-forward layers, and the settings."""

import dataclasses
import itertools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.attention import attend, split_heads
from score_sde.models.conditioning import Conditions, check_sides
from score_sde.models.layers import DTYPES, REMATS, Dtype, across, dense, parameter, positional_embedding
from score_sde.models.positions import Rotation, rotated
from score_sde.typing import Data

Tokens = Float[Array, "batch tokens width"]
MLP_RATIO = 4


class Size(NamedTuple):
    """A transformer's number of blocks, features of a token, and attention heads."""

    depth: int
    width: int
    heads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(Conditions):
    """Settings that all transformers share.

    size: a name of the paper's. depth, width, heads: instead of the size's, where not 0. patch: side of a patch, on
    every axis. positions: how a token's place is told, see `positions`. dtype: of the computation, "float32" or
    "bfloat16"; parameters are float32 always. remat: a row of `layers.REMATS`.
    """

    SIZES: ClassVar[dict[str, Size]]
    POSITIONS: ClassVar[tuple[str, ...]]

    size: str
    depth: int = 0
    width: int = 0
    heads: int = 0
    patch: int = 2
    positions: str
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("size", self.size, self.SIZES)
            check.name("positions", self.positions, self.POSITIONS)
            check.name("dtype", self.dtype, DTYPES)
            check.name("remat", self.remat, REMATS)
            for name in ("depth", "width", "heads"):
                value = getattr(self, name)
                check.that(value >= 0, f"{name} must be positive, or 0 for that of the size, not {value}")
            check.that(self.patch >= 1, f"patch must be at least 1, not {self.patch}")
            if self.size in self.SIZES and min(self.depth, self.width, self.heads) >= 0:
                _, width, heads = self.dimensions
                fits = width % 4 == 0 and width % (2 * heads) == 0
                check.that(fits, f"width must be a multiple of 4 and of twice heads={heads}, not {width}")
            self.check_conditions(check)

    @property
    def dimensions(self) -> Size:
        """Depth, width and heads."""
        size = self.SIZES[self.size]
        return Size(self.depth or size.depth, self.width or size.width, self.heads or size.heads)

    def check_grid(self, network: str, sides: tuple[int, ...]) -> None:
        """Raises UserError unless patches fit into the sides, and rotary positions into a head."""
        check_sides(network, sides, self.patch)
        features = self.dimensions.width // self.dimensions.heads
        if self.positions == "rotary" and features < 2 * len(sides):
            raise UserError(f"{network}: rotary positions need {2 * len(sides)} features a head, not {features}")

    def grid(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """How many patches there are along each axis."""
        return tuple(side // self.patch for side in sides)


def check_image_or_audio(network: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless `shape` has one or two axes before the channels."""
    if len(shape) not in (2, 3):
        kinds = "images (height, width, channels) or audio (time, channels)"
        raise UserError(f"{network} takes {kinds}, not samples of shape {shape}")


def to_patches(x: Data, patch: int) -> Float[Array, "batch tokens values"]:
    """Every patch as one vector, (…, row, column, channel) within it, row by row."""
    batch, *space, channels = x.shape
    split = x.reshape(batch, *itertools.chain(*((side // patch, patch) for side in space)), channels)
    axes, values = range(1, 2 * len(space) + 1), patch ** len(space) * channels
    return split.transpose(0, *axes[::2], *axes[1::2], split.ndim - 1).reshape(batch, -1, values)


def from_patches(tokens: Float[Array, "batch tokens values"], grid: tuple[int, ...], patch: int) -> Data:
    """The array of which `to_patches` makes these."""
    batch, axes = tokens.shape[0], len(grid)
    split = tokens.reshape(batch, *grid, *(patch,) * axes, -1)
    order = itertools.chain(*((1 + axis, 1 + axes + axis) for axis in range(axes)))
    return split.transpose(0, *order, split.ndim - 1).reshape(batch, *(side * patch for side in grid), -1)


def cos_sin_embedding(position: Float[Array, "batch"], features: int) -> Float[Array, "batch features"]:
    """`positional_embedding` of an even number of features with 1/base beyond the lowest frequency, cosines first."""
    return jnp.roll(positional_embedding(position, features, last=False), features // 2, axis=1)


class LayerNorm(nnx.Module):
    """Each place normalised over its channels, in float32, and scaled and moved where `learnt`."""

    def __init__(self, channels: int, *, learnt: bool = False, epsilon: float = 1e-6, dtype: Dtype) -> None:
        self.epsilon, self.dtype, self.learnt = epsilon, dtype, learnt
        if learnt:
            self.scale = parameter(jnp.ones(channels), "channels")
            self.bias = parameter(jnp.zeros(channels), "channels")

    def __call__(self, x: Float[Array, "*places channels"]) -> Float[Array, "*places channels"]:
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.epsilon)
        if self.learnt:
            every = (None,) * (x.ndim - 1)
            x = x * self.scale[...][every] + self.bias[...][every]
        return x.astype(self.dtype)


class Modulation(nnx.Module):
    """Shifts, scales and gates, `parts` of them in all: a linear map of the embedding, zero at first (adaLN-zero)."""

    def __init__(self, width: int, parts: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.parts = parts
        self.dense = dense(width, parts * width, init=initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, embedding: Float[Array, "batch width"], rank: int) -> list[Float[Array, "batch *ones width"]]:
        """Each shaped to meet an array of `rank` axes."""
        return [across(part, rank) for part in jnp.split(self.dense(embedding), self.parts, axis=-1)]


class SelfAttention(nnx.Module):
    """Wₒ attention(W_q x, W_k x, W_v x) of `heads` heads, each with its features side by side.

    init, output_init: of the projections'; by default Xavier's uniform.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        init: nnx.Initializer | None = None,
        output_init: nnx.Initializer | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.query_key_value = dense(width, 3 * width, bias=bias, init=init, axes=("in", "heads"), **options)
        self.output = dense(width, width, init=output_init or init, axes=("heads", "out"), **options)

    def __call__(
        self, x: Tokens, turn: Rotation | None = None, mask: Bool[Array, "batch tokens"] | None = None
    ) -> Tokens:
        """turn: rotary positions of the tokens. mask: which of them count."""
        parts = self.query_key_value.project(x, 3, self.heads)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        if turn is not None:
            query, key = rotated(query, turn), rotated(key, turn)
        return self.output(attend(query, key, value, mask).reshape(x.shape))


class FeedForward(nnx.Module):
    """W₂ gelu(W₁ x), of four times the width within. approximate: gelu by tanh and not by the error function."""

    def __init__(
        self,
        width: int,
        *,
        approximate: bool,
        init: nnx.Initializer | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.approximate = approximate
        self.inner = dense(width, MLP_RATIO * width, init=init, axes=("in", "mlp"), dtype=dtype, rngs=rngs)
        self.output = dense(MLP_RATIO * width, width, init=init, axes=("mlp", "out"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        return self.output(jax.nn.gelu(self.inner(x), approximate=self.approximate))
