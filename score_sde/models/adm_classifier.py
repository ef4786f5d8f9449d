r"""ADM's noise-conditional classifier: the way down of its U-Net, and a pool (Dhariwal & Nichol 2021, section 4).

    attention    logits = Wₒ of attention's first output over [mean, pixels] of silu(norm h), plus learnt positions
    adaptive     logits = W mean silu(norm h)
    spatial      logits = W₂ relu(W₁ m), m the means over pixels of all that the way down gives, side by side
    spatial_v2   logits = W₂ silu(norm(W₁ m))

The published ones pool by attention. The pools compute in float32.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import Checks
from score_sde.models import initializers
from score_sde.models.adm_blocks import (
    START,
    ZERO,
    Encoder,
    Image,
    NoiseEmbedding,
    UNetSettings,
    norm,
    runner,
    split_projection,
)
from score_sde.models.attention import attend
from score_sde.models.layers import dense, parameter

HIDDEN = 2048  # features of the spatial pools

Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADMClassifier(UNetSettings):
    """Settings of the classifier. pool: a row of `POOLS`."""

    classes: int = 1000
    pool: str = "attention"

    def __post_init__(self) -> None:
        with Checks() as check:
            self.check_unet(check)
            check.name("pool", self.pool, POOLS)
            check.that(2 <= self.classes <= 10**6, f"classes must lie in [2, 1e6], not {self.classes}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        self.check_sides("adm", shape)

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "ADMClassifierModule":
        """The module for samples of `shape`."""
        return ADMClassifierModule(self, shape, rngs)


class AttentionPool(nnx.Module):
    """The pool "attention"; see the module. pixels: how many it is given."""

    def __init__(self, settings: ADMClassifier, encoder: Encoder, pixels: int, *, rngs: nnx.Rngs) -> None:
        channels, options = encoder.channels, {"init": START, "dtype": jnp.float32, "rngs": rngs}
        self.heads = settings.heads_of(channels)
        self.norm = norm(channels, settings, dtype=jnp.float32)
        position = initializers.normal(1 / math.sqrt(channels))(rngs.params(), (pixels + 1, channels))
        self.position = parameter(position, "tokens", "channels")
        self.query_key_value = dense(channels, 3 * channels, axes=("in", "heads"), **options)
        self.output = dense(channels, settings.classes, axes=("heads", "out"), **options)

    def __call__(self, h: Image, skips: list[Image]) -> Logits:
        batch, channels = h.shape[0], h.shape[-1]
        pixels = jax.nn.silu(self.norm(h)).reshape(batch, -1, channels)
        tokens = jnp.concatenate([jnp.mean(pixels, axis=1, keepdims=True), pixels], axis=1) + self.position[...][None]
        query, key, value = split_projection(self.query_key_value(tokens), self.heads, "new")
        return self.output(attend(query[:, :1], key, value).reshape(batch, channels))


class MeanPool(nnx.Module):
    """The pool "adaptive"."""

    def __init__(self, settings: ADMClassifier, encoder: Encoder, pixels: int, *, rngs: nnx.Rngs) -> None:
        self.norm = norm(encoder.channels, settings, dtype=jnp.float32)
        self.output = dense(encoder.channels, settings.classes, init=ZERO, dtype=jnp.float32, rngs=rngs)

    def __call__(self, h: Image, skips: list[Image]) -> Logits:
        return self.output(jnp.mean(jax.nn.silu(self.norm(h)), axis=(1, 2)))


class SpatialPool(nnx.Module):
    """The pools "spatial", and "spatial_v2" with a norm."""

    def __init__(self, settings: ADMClassifier, encoder: Encoder, pixels: int, *, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"init": START, "dtype": jnp.float32, "rngs": rngs}
        self.hidden = dense(sum(encoder.skips) + encoder.channels, HIDDEN, **options)
        self.norm = norm(HIDDEN, settings, dtype=jnp.float32) if settings.pool == "spatial_v2" else None
        self.output = dense(HIDDEN, settings.classes, **options)

    def __call__(self, h: Image, skips: list[Image]) -> Logits:
        means = [jnp.mean(each.astype(jnp.float32), axis=(1, 2)) for each in (*skips, h)]
        hidden = self.hidden(jnp.concatenate(means, axis=-1))
        return self.output(jax.nn.relu(hidden) if self.norm is None else jax.nn.silu(self.norm(hidden)))


POOLS: dict[str, Any] = {
    "attention": AttentionPool,
    "adaptive": MeanPool,
    "spatial": SpatialPool,
    "spatial_v2": SpatialPool,
}


class ADMClassifierModule(nnx.Module):
    """The classifier itself; see `ADMClassifier` for its settings."""

    def __init__(self, settings: ADMClassifier, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.settings = settings
        self.noise = NoiseEmbedding(settings, rngs=rngs)
        self.encoder = Encoder(settings, shape, rngs=rngs)
        pixels = math.prod(shape[:2]) // 4 ** (len(settings.widths) - 1)
        self.pool = POOLS[settings.pool](settings, self.encoder, pixels, rngs=rngs)

    def __call__(
        self, x: Image, noise_condition: Float[Array, "batch"], *, train: bool, rng: jax.Array | None
    ) -> Logits:
        """The logits, float32. rng is needed where train and dropout > 0."""
        run = runner(self.settings, self.noise(self.noise.features(noise_condition)), train=train, rng=rng)
        return self.pool(*self.encoder(x, run))
