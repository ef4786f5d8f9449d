r"""EfficientNet-Lite0 (Tan & Le 2019; Google's Lite variant of 2020, without squeeze-and-excitation, and with relu6).

    unit        relu6(W * x + b), same-padded as in TensorFlow; batch normalisation (ε = 1e-3) is folded in
    block       expand (1×1, a unit), depthwise (k×k, a unit), project (1×1, without relu6); plus x where that fits
    features    the mean over places of the last unit: 1280 numbers
    logits      W features + b, of ImageNet's 1000 classes

x is (p − 127)/128 for pixels p in [0, 255], images of 224×224. A depthwise convolution is computed as

    y[i, j, c] = Σ_ab k[a, b, c] x[s i + a, s j + b, c],

k² products of the whole image by one number a channel, and their sum: on a CPU XLA's convolution of one group a channel
takes more than ten times as long, and so did the network.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import UserError
from score_sde.models.layers import conv, dense, initializer, parameter

Image = Float[Array, "batch height width channels"]
CLASSES = 1000
STEM, HEAD = 32, 1280


class Stage(NamedTuple):
    """Blocks of the same kind, the first of them with the stride. expand: by which the channels are multiplied."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetLite0:
    """Nothing to set."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, 3)."""
        if len(shape) != 3 or shape[2] != 3:
            raise UserError(f"efficientnet_lite0 takes images of 3 channels, not of shape {shape}")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "EfficientNetModule":
        """The module for samples of `shape`."""
        return EfficientNetModule(shape, rngs)


def depthwise(x: Image, kernel: Float[Array, "k k channels"], stride: int) -> Image:
    """The convolution of each channel with its own kernel, same-padded as in TensorFlow; see the module."""
    size = kernel.shape[0]
    sides = x.shape[1:3]
    pads = jax.lax.padtype_to_pads(sides, (size, size), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (stride * (-(-side // stride) - 1) + 1 for side in sides)  # from the first place to the last
    taps = [
        kernel[a, b][None, None, None] * padded[:, a : a + height : stride, b : b + width : stride]
        for a in range(size)
        for b in range(size)
    ]
    return sum(taps[1:], start=taps[0])


class Depthwise(nnx.Module):
    """A depthwise convolution with a bias."""

    def __init__(self, channels: int, size: int, stride: int, rngs: nnx.Rngs) -> None:
        self.stride = stride
        value = initializer()(rngs.params(), (size, size, 1, channels))[:, :, 0]
        self.kernel = parameter(value, None, None, "channels")
        self.bias = parameter(jnp.zeros(channels), "channels")

    def __call__(self, x: Image) -> Image:
        return depthwise(x, self.kernel[...], self.stride) + self.bias[...][None, None, None]


class Block(nnx.Module):
    """An inverted residual; see the module."""

    def __init__(self, in_channels: int, stage: Stage, stride: int, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        inner = in_channels * stage.expand
        self.adds = stride == 1 and in_channels == stage.features
        if stage.expand > 1:
            self.expand = conv(in_channels, inner, 1, **options)
        self.depthwise = Depthwise(inner, stage.kernel, stride, rngs)
        self.project = conv(inner, stage.features, 1, **options)

    def __call__(self, x: Image) -> Image:
        h = jax.nn.relu6(self.expand(x)) if hasattr(self, "expand") else x
        h = self.project(jax.nn.relu6(self.depthwise(h)))
        return h + x if self.adds else h


class EfficientNetModule(nnx.Module):
    """The network itself."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        self.stem = conv(shape[-1], STEM, 3, strides=2, **options)
        channels, blocks = STEM, []
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(channels, stage, 1 if number else stage.stride, rngs))
                channels = stage.features
        self.blocks = nnx.List(blocks)
        self.head = conv(channels, HEAD, 1, **options)
        self.output = dense(HEAD, CLASSES, **options)

    def __call__(self, x: Image) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features and logits. x: (p − 127)/128."""
        h = jax.nn.relu6(self.stem(x))
        for block in self.blocks:
            h = block(h)
        features = jnp.mean(jax.nn.relu6(self.head(h)), axis=(1, 2))
        return features, self.output(features)
