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
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.functional import Network, Path
from score_sde.models.layers import Dtype, GroupNorm
from score_sde.models.positions import rotation
from score_sde.models.transformer import SelfAttention
from score_sde.typing import Condition, Data, Params, WithVariance

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
    ) -> Data | WithVariance:
        """The output of the frames. A condition holds for each; its image is a video."""
        frames = x.shape[1]
        each = lambda values: jnp.repeat(values, frames, axis=0)
        if condition is not None:
            condition = {
                name: _folded(_in_time(value, frames)) if name == "image" else each(value)
                for name, value in condition.items()
            }
        output = self.frame(_folded(x), each(noise_condition), condition, train=train, rng=rng)
        return jax.tree.map(lambda part: part.reshape(x.shape), output)


class AttentionOverTime(nnx.Module):
    """x + Wₒ attention(norm x) over the frames at each place, single head, with rotary positions; first the identity.

    The U-Nets': Ho et al. 2022 has it after each attention over space.
    """

    def __init__(self, channels: int, frames: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.frames = frames
        self.norm = GroupNorm(channels, dtype=dtype)
        zeros = initializers.zeros
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
    known = video_network.parameters()
    flat: dict[Path, Array] = {("frame", *path): leaf for path, leaf in flatten_dict(image_params).items()}
    new = [path for path in known if OVER_TIME in path]
    unlike = [path for path in known if path not in new and (path not in flat or flat[path].shape != known[path].shape)]
    left = [path for path in flat if path not in known]
    with Checks() as check:
        name = lambda path: ".".join(map(str, path[1:]))
        for path in unlike[:1]:
            check.that(False, f"the image network has no parameter {name(path)} of shape {known[path].shape}")
        for path in left[:1]:
            check.that(False, f"the video network has no parameter {name(path)}, which the image network has")

    def fresh(key: jax.Array) -> list[Array]:
        initial = flatten_dict(video_network.init(key))
        return [initial[path] for path in new]

    values = jax.jit(fresh)(jax.random.key(0) if key is None else key)
    return unflatten_dict(flat | dict(zip(new, values, strict=True)))


def _folded(x: Data) -> Float[Array, "batch_frames *space channels"]:
    return x.reshape(-1, *x.shape[2:])


def _in_time(video: Data, frames: int) -> Data:
    """As many frames as there must be; their own size is for the network's resizing."""
    return jax.image.resize(video, (video.shape[0], frames, *video.shape[2:]), "bilinear")
