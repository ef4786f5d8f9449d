r"""A residual MLP for points (dim,), which may see Fourier features of them.

input       h = W [x, sin 2π B x, cos 2π B x],  fixed B ~ N(0, feature_scale²)  (Tancik et al. 2020), or W x
embedding   e = swish(W₂ swish(W₁ γ(noise condition)) + condition)
block       h ← h + c W₂ swish(W₁ ((1 + b) norm h + a)),  (a, b, c) = W e, zero at first  (adaLN-zero, as in DiT)
    or      h ← h + W₂ swish(W₁ norm h + W e)                                             (as in DDPM)
output      W norm h, nearly zero at first
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.attention import CrossAttention
from score_sde.models.conditioning import ConditionEmbedding, Conditions
from score_sde.models.layers import (
    DTYPES,
    REMATS,
    Dtype,
    FourierEmbedding,
    dense,
    parameter,
    positional_embedding,
    rematerialised,
)
from score_sde.models.transformer import LayerNorm, Modulation
from score_sde.typing import Condition

EMBEDDINGS = ("positional", "fourier")
MODULATIONS = ("adaln", "add")

Points = Float[Array, "batch dim"]
Hidden = Float[Array, "batch width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP(Conditions):
    """Settings of the network.

    width, depth: of the residual blocks. fourier_features: number of frequencies in which the point itself is seen
    beside its coordinates, 0 for none; feature_scale: their standard deviation, in cycles a unit of x. embedding: of
    the noise condition; fourier_scale: σ of its frequencies. modulation: how blocks are told of it, "adaln" or "add".
    dtype: of the computation, "float32" or "bfloat16"; parameters are float32 always. remat: a row of
    `layers.REMATS`.
    """

    width: int = 256
    depth: int = 4
    fourier_features: int = 0
    feature_scale: float = 1.0
    embedding: str = "positional"
    fourier_scale: float = 16.0
    modulation: str = "adaln"
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            even = self.width >= 4 and self.width % 2 == 0
            check.that(even, f"width must be even and at least 4, not {self.width}")
            check.that(self.depth >= 1, f"depth must be at least 1, not {self.depth}")
            check.that(self.fourier_features >= 0, f"fourier_features must be 0 or more, not {self.fourier_features}")
            check.that(self.feature_scale > 0, f"feature_scale must be positive, not {self.feature_scale}")
            check.that(self.fourier_scale > 0, f"fourier_scale must be positive, not {self.fourier_scale}")
            check.name("embedding", self.embedding, EMBEDDINGS)
            check.name("modulation", self.modulation, MODULATIONS)
            check.name("dtype", self.dtype, DTYPES)
            check.name("remat", self.remat, REMATS)
            self.check_conditions(check)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (dim,)."""
        if len(shape) != 1:
            raise UserError(f"mlp takes points (dim,), not samples of shape {shape}")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "MLPModule":
        """The module for samples of `shape`."""
        return MLPModule(self, shape[0], rngs)


class FourierFeatures(nnx.Module):
    """[x, sin 2π B x, cos 2π B x] with fixed B ~ N(0, scale²)."""

    def __init__(self, inputs: int, count: int, scale: float, *, rngs: nnx.Rngs) -> None:
        value = initializers.normal(scale)(rngs.params(), (inputs, count))
        self.frequency = parameter(value, "in", "out", trainable=False)

    def __call__(self, x: Points) -> Float[Array, "batch features"]:
        angle = 2 * math.pi * (x @ jax.lax.stop_gradient(self.frequency[...]))
        return jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)], axis=1)


class Block(nnx.Module):
    """See the module."""

    def __init__(self, settings: MLP, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        width = settings.width
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm = LayerNorm(width, dtype=dtype)
        self.inner = dense(width, width, axes=("in", "mlp"), **options)
        self.output = dense(width, width, axes=("mlp", "out"), **options)
        self.adaptive = settings.modulation == "adaln"
        self.modulation: Any = Modulation(width, 3, **options) if self.adaptive else dense(width, width, **options)
        if settings.token_features:
            norm = LayerNorm(width, dtype=dtype)
            self.cross = CrossAttention(width, settings.token_features, norm=norm, **options)

    def __call__(self, h: Hidden, embedding: Hidden, tokens: Any) -> Hidden:
        if self.adaptive:
            shift, scale, gate = self.modulation(embedding, h.ndim)
            h = h + gate * self.output(jax.nn.swish(self.inner(self.norm(h) * (1 + scale) + shift)))
        else:
            h = h + self.output(jax.nn.swish(self.inner(self.norm(h)) + self.modulation(embedding)))
        return h if tokens is None else self.cross(h, *tokens)


class MLPModule(nnx.Module):
    """The network itself; see `MLP` for its settings."""

    def __init__(self, settings: MLP, dimension: int, rngs: nnx.Rngs) -> None:
        width = settings.width
        options: dict[str, Any] = {"dtype": DTYPES[settings.dtype], "rngs": rngs}
        self.settings = settings
        inputs, count = dimension + settings.image_channels, settings.fourier_features
        if count:
            self.features = FourierFeatures(inputs, count, settings.feature_scale, rngs=rngs)
        self.input = dense(inputs + 2 * count, width, **options)
        if settings.embedding == "fourier":
            self.fourier = FourierEmbedding(width, settings.fourier_scale, rngs=rngs)
        self.embed_in = dense(width, width, **options)
        self.embed_out = dense(width, width, **options)
        self.condition = ConditionEmbedding(settings, width, **options)
        self.blocks = nnx.List([Block(settings, **options) for _ in range(settings.depth)])
        self.norm = LayerNorm(width, dtype=options["dtype"])
        self.output = dense(width, dimension, scale=0.0, **options)

    def __call__(
        self,
        x: Points,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Points:
        """The raw prediction, float32, of the shape of x. There is no dropout: rng is not used, in training neither."""
        settings = self.settings
        embedding = self._embedding(noise_condition, condition)
        tokens = self.condition.tokens(condition, len(x)) if settings.token_features else None
        h = self.condition.with_image(x, condition)
        h = self.input(self.features(h) if settings.fourier_features else h)
        for block in self.blocks:
            call = lambda h, block=block: block(h, embedding, tokens)
            h = rematerialised(call, settings.remat)(h)
        return self.output(self.norm(h)).astype(jnp.float32)

    def _embedding(self, noise_condition: Float[Array, "batch"], condition: Condition) -> Hidden:
        if self.settings.embedding == "fourier":
            features = self.fourier(noise_condition)
        else:
            features = positional_embedding(noise_condition, self.settings.width)
        embedding = self.embed_out(jax.nn.swish(self.embed_in(features)))
        return jax.nn.swish(self.condition.add_to(embedding, condition))
