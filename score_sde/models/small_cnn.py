r"""A small convolutional classifier of small images, whose last hidden layer serves as features.

level       h = relu(W * h + b), 3×3; h = the maximum over 2×2 places, one level for each of `channels`
features    relu(W h + b), of all places side by side
logits      W features + b
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import UserError
from score_sde.models import initializers
from score_sde.models.layers import conv, dense

Image = Float[Array, "batch height width channels"]
KAIMING = initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallCNN:
    """classes: labels to tell apart. channels: of each level. features: of the last hidden layer."""

    classes: int = 10
    channels: tuple[int, ...] = (32, 64)
    features: int = 64

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels) with at least a place on the last level."""
        smallest = 2 ** len(self.channels)
        if len(shape) != 3 or min(shape[:2]) < smallest:
            raise UserError(f"small_cnn takes images from {smallest}x{smallest} pixels, not of shape {shape}")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "SmallCNNModule":
        """The module for samples of `shape`."""
        return SmallCNNModule(self, shape, rngs)


class SmallCNNModule(nnx.Module):
    """The network itself; see `SmallCNN` for its settings."""

    def __init__(self, settings: SmallCNN, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        height, width, channels = shape
        levels = []
        for features in settings.channels:
            levels.append(conv(channels, features, 3, init=KAIMING, dtype=jnp.float32, rngs=rngs))
            height, width, channels = height // 2, width // 2, features
        self.levels = nnx.List(levels)
        inputs = height * width * channels
        self.hidden = dense(inputs, settings.features, init=KAIMING, dtype=jnp.float32, rngs=rngs)
        self.output = dense(settings.features, settings.classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Image) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features and logits. x: about [−1, 1]."""
        h = x
        for level in self.levels:
            h = _pooled(jax.nn.relu(level(h)))
        features = jax.nn.relu(self.hidden(h.reshape(len(h), -1)))
        return features, self.output(features)


def _pooled(x: Image) -> Image:
    """The maximum over 2×2 places, without the last row or column of an odd number.

    As an axis of its own: on a CPU the gradient of XLA's window takes ten times as long.
    """
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
