r"""Video (frames, height, width, channels) by a network for images, to which layers over time are added.

All layers of the image network see each frame as an image of its own, frames folded into the batch; layers over time,
the attribute `over_time` of what they follow, see each place's frames as a sequence. They are the identity at first, so
that a network inflated from an image network's weights begins as that, frame by frame (Ho et al. 2022; Singer et al.
2022).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import UserError
from score_sde.models.functional import Network, Path
from score_sde.models.layers import Dtype, GroupNorm
from score_sde.models.positions import rotation
from score_sde.models.transformer import SelfAttention
from score_sde.typing import Condition, Data, Params

OVER_TIME = "over_time"
Sequences = Float[Array, "sequences frames channels"]


def check_video(network: str, shape: tuple[int, ...]) -> None:
    """Raises UserError unless `shape` is (frames, height, width, channels)."""
    if len(shape) != 4:
        raise UserError(f"{network} takes video (frames, height, width, channels), not samples of shape {shape}")


class Frames(nnx.Module):
    """A network for images, applied to the frames of videos; its own layers over time join them again."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __call__(
        self,
        x: Data,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Data:
        """The output of the frames. A condition holds for each; its image is a video."""
        frames = x.shape[1]
        each = lambda values: jnp.repeat(values, frames, axis=0)
        if condition is not None:
            condition = {
                name: _folded(_in_time(value, frames)) if name == "image" else each(value)
                for name, value in condition.items()
            }
        output = self.frame(_folded(x), each(noise_condition), condition, train=train, rng=rng)
        return output.reshape(x.shape)


class AttentionOverTime(nnx.Module):
    """x + Wₒ attention(norm x) over the frames at each place, single head, with rotary positions; first the identity.

    The U-Nets': Ho et al. 2022 has it after each attention over space.
    """

    def __init__(self, channels: int, frames: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.frames = frames
        self.norm = GroupNorm(channels, dtype=dtype)
        zeros = nnx.initializers.zeros
        self.attention = SelfAttention(channels, 1, output_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch_frames *space channels"]) -> Float[Array, "batch_frames *space channels"]:
        turn = rotation((self.frames,), x.shape[-1])
        return x + over_time(lambda sequences: self.attention(sequences, turn), self.norm(x), self.frames)


def over_time(
    call: Callable[[Sequences], Sequences], x: Float[Array, "batch_frames *space channels"], frames: int
) -> Float[Array, "batch_frames *space channels"]:
    """`call` of the sequence of frames at each place."""
    places, channels = math.prod(x.shape[1:-1]), x.shape[-1]
    sequences = x.reshape(-1, frames, places, channels).swapaxes(1, 2)
    done = call(sequences.reshape(-1, frames, channels))
    return done.reshape(-1, places, frames, channels).swapaxes(1, 2).reshape(x.shape)


def inflate(image_params: Params, video_network: Network, key: jax.Array | None = None) -> Params:
    """Parameters of the video network that give, on each frame, what the image network gives with its own.

    key: for the layers over time, which are new. Raises UserError where the two networks are not of the same settings.
    """
    image = jax.tree_util.tree_flatten_with_path(image_params)[0]
    given: dict[Path, Array] = {("frame", *(part.key for part in path)): leaf for path, leaf in image}
    taken = set()

    def value(path: Any, fresh: Array) -> Array:
        own = tuple(part.key for part in path)
        if OVER_TIME in own:
            return fresh
        if own not in given or given[own].shape != fresh.shape:
            name = ".".join(map(str, own[1:]))
            raise UserError(f"the image network has no parameter {name} of shape {fresh.shape}")
        taken.add(own)
        return given[own]

    new = video_network.init(jax.random.key(0) if key is None else key)
    params = jax.tree_util.tree_map_with_path(value, new)
    left = [".".join(map(str, path[1:])) for path in given if path not in taken]
    if left:
        raise UserError(f"the video network has no parameter {left[0]}, which the image network has")
    return params


def _folded(x: Data) -> Float[Array, "batch_frames *space channels"]:
    return x.reshape(-1, *x.shape[2:])


def _in_time(video: Data, frames: int) -> Data:
    """As many frames as there must be; their own size is for the network's resizing."""
    return jax.image.resize(video, (video.shape[0], frames, *video.shape[2:]), "bilinear")
