r"""score_sde's noise-conditional classifier: a wide residual network (Zagoruyko & Komodakis 2016; Song et al. 2021).

    x           each image with its mean taken away, over max(its standard deviation, 1/√its values)
    embedding   e = W₂ swish(W₁ [sin, cos](2π w · noise condition)), w ~ N(0, 16²) fixed; meant for log σ
    block       h = conv(relu(norm x)) + W swish(e);  h = conv(relu(norm h));  h + x

Three groups of blocks of 16, 32 and 64 `channel_multiplier` channels. The last two begin with a stride of 2, by which x
is then averaged, and channels that x lacks are zeros. The first group adds to relu(norm x) and not to x.
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
from score_sde.models.conditioning import check_image
from score_sde.models.layers import (
    DTYPES,
    REMATS,
    Dtype,
    FourierEmbedding,
    GroupNorm,
    across,
    conv,
    dense,
    rematerialised,
)
from score_sde.models.resample import downsample

Image = Float[Array, "batch height width channels"]
Embedding = Float[Array, "batch features"]

WIDTH, GROUPS = 16, 3
FREQUENCIES, FOURIER_SCALE = 128, 16.0
KAIMING = initializers.variance_scaling(2.0, "fan_out", "normal")
LAST = initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # U(±1/√classes)
LECUN = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WideResNet:
    """Settings. classes: labels to tell apart. The defaults are score_sde's for CIFAR-10: 28 layers, 10 times as wide.

    dtype, remat: as of every network.
    """

    classes: int = 10
    blocks_per_group: int = 4
    channel_multiplier: int = 10
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(2 <= self.classes <= 10**6, f"classes must lie in [2, 1e6], not {self.classes}")
            for name in ("blocks_per_group", "channel_multiplier"):
                check.that(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
            check.name("dtype", self.dtype, DTYPES)
            check.name("remat", self.remat, REMATS)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) that the down-sampling divides."""
        check_image("wide_resnet", shape, 2 ** (GROUPS - 1))

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "WideResNetModule":
        """The module for samples of `shape`."""
        return WideResNetModule(self, shape, rngs)


def _norm(channels: int, dtype: Dtype) -> GroupNorm:
    return GroupNorm(channels, epsilon=1e-5, dtype=dtype)


class Block(nnx.Module):
    """A residual block; see the module. normalised: whether it adds to relu(norm x)."""

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, normalised: bool, dtype: Dtype, rngs: nnx.Rngs
    ) -> None:
        options: dict[str, Any] = {"init": KAIMING, "bias": False, "dtype": dtype, "rngs": rngs}
        self.added, self.stride, self.normalised = channels - in_channels, stride, normalised
        self.norm_in = _norm(in_channels, dtype)
        self.conv_in = conv(in_channels, channels, 3, strides=stride, **options)
        self.embedding = dense(4 * FREQUENCIES, channels, init=LECUN, dtype=dtype, rngs=rngs)
        self.norm_out = _norm(channels, dtype)
        self.conv_out = conv(channels, channels, 3, **options)

    def __call__(self, x: Image, embedding: Embedding) -> Image:
        """embedding: swish of it, which is all that the blocks use."""
        h = jax.nn.relu(self.norm_in(x))
        x = h if self.normalised else x
        h = self.conv_in(h) + across(self.embedding(embedding), x.ndim)
        h = self.conv_out(jax.nn.relu(self.norm_out(h)))
        x = x if self.stride == 1 else downsample(x)
        return h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.added)))


class WideResNetModule(nnx.Module):
    """The classifier itself; see `WideResNet` for its settings."""

    def __init__(self, settings: WideResNet, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        dtype: Dtype = DTYPES[settings.dtype]
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.settings = settings
        self.fourier = FourierEmbedding(2 * FREQUENCIES, FOURIER_SCALE, rngs=rngs)
        self.embed_in = dense(2 * FREQUENCIES, 4 * FREQUENCIES, init=LECUN, **options)
        self.embed_out = dense(4 * FREQUENCIES, 4 * FREQUENCIES, init=LECUN, **options)
        self.conv_in = conv(shape[-1], WIDTH, 3, init=KAIMING, bias=False, **options)
        channels = WIDTH
        blocks: list[Block] = []
        for group in range(GROUPS):
            for number in range(settings.blocks_per_group):
                width = WIDTH * 2**group * settings.channel_multiplier
                stride = 2 if group and not number else 1
                first = not blocks
                blocks.append(Block(channels, width, stride=stride, normalised=first, **options))
                channels = width
        self.blocks = nnx.List(blocks)
        self.norm_out = _norm(channels, jnp.float32)
        self.output = dense(channels, settings.classes, init=LAST, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, x: Image, noise_condition: Float[Array, "batch"], *, train: bool, rng: jax.Array | None
    ) -> Float[Array, "batch classes"]:
        """The logits, float32. It has no dropout: neither train nor rng changes anything."""
        h = self.conv_in(_standardised(x))
        embedding = self.embed_out(jax.nn.swish(self.embed_in(self.fourier(noise_condition))))
        told = jax.nn.swish(embedding)
        for block in self.blocks:
            h = rematerialised(lambda h, told, block=block: block(h, told), self.settings.remat)(h, told)
        return self.output(jnp.mean(jax.nn.relu(self.norm_out(h)), axis=(1, 2)))


def _standardised(x: Image) -> Image:
    """Each image less its mean, over its standard deviation or, if that is larger, 1/√its values."""
    centred = x - jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    # The maximum under the root, which has no derivative at the variance 0 of an image of one colour.
    variance = jnp.maximum(jnp.mean(centred**2, axis=(1, 2, 3), keepdims=True), 1 / math.prod(x.shape[1:]))
    return centred * jax.lax.rsqrt(variance)
