r"""Inception-v3 of December 2015 as the FID uses it (Szegedy et al. 2016; Heusel et al. 2017).

    unit        relu(W * x + b), * a convolution: b and the scale of batch normalisation, with the fixed statistics of
                training and ε = 1e-3, are folded into W and b when published weights are read
    features    the mean over the last 8×8 places: 2048 numbers
    logits      W features, without the output's bias: of 1008 classes, of which the Inception score is taken

It differs from torchvision's Inception-v3 of the same name in three things: 1008 classes, average pools that leave what
lies outside the image out of the mean, and, in the last block alone, a maximum in the average pool's place. x is
(p − 128)/128 for pixels p in [0, 255]: that is what the published TensorFlow graph computes; (p − 127.5)/127.5, in some
later code, is not.

Sources: the graph `inception-2015-12-05` of TensorFlow, as pytorch-fid and torch-fidelity read it; Salimans et al. 2016
for the logits without bias.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import UserError
from score_sde.models.layers import Conv, conv, dense

Image = Float[Array, "batch height width channels"]
FEATURES, CLASSES = 2048, 1008
SMALLEST = 75  # the side at which the last block still has a place


class Unit(NamedTuple):
    """A convolution to `features` channels; same-padded at stride 1 unless `valid`, and not padded at stride 2."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


class Branch(NamedTuple):
    """What is done to a block's input, beside the other branches. pool: a row of `POOLS`, before the units.

    fork: units that stand side by side after the others.
    """

    units: tuple[Unit, ...]
    pool: str = ""
    fork: tuple[Unit, ...] = ()


def _average(x: Image) -> Image:
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def _maximum(x: Image) -> Image:
    return nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")


def _halved(x: Image) -> Image:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


POOLS = {"": lambda x: x, "average": _average, "maximum": _maximum, "halved": _halved}


def _a(pooled: int) -> tuple[Branch, ...]:
    three = Unit(96, (3, 3))
    return (
        Branch((Unit(64),)),
        Branch((Unit(48), Unit(64, (5, 5)))),
        Branch((Unit(64), three, three)),
        Branch((Unit(pooled),), "average"),
    )


def _b() -> tuple[Branch, ...]:
    return (
        Branch((Unit(384, (3, 3), 2),)),
        Branch((Unit(64), Unit(96, (3, 3)), Unit(96, (3, 3), 2))),
        Branch((), "halved"),
    )


def _c(n: int) -> tuple[Branch, ...]:
    wide, high = Unit(n, (1, 7)), Unit(n, (7, 1))
    return (
        Branch((Unit(192),)),
        Branch((Unit(n), wide, Unit(192, (7, 1)))),
        Branch((Unit(n), high, wide, high, Unit(192, (1, 7)))),
        Branch((Unit(192),), "average"),
    )


def _d() -> tuple[Branch, ...]:
    return (
        Branch((Unit(192), Unit(320, (3, 3), 2))),
        Branch((Unit(192), Unit(192, (1, 7)), Unit(192, (7, 1)), Unit(192, (3, 3), 2))),
        Branch((), "halved"),
    )


def _e(pool: str) -> tuple[Branch, ...]:
    fork = (Unit(384, (1, 3)), Unit(384, (3, 1)))
    return (
        Branch((Unit(320),)),
        Branch((Unit(384),), fork=fork),
        Branch((Unit(448), Unit(384, (3, 3))), fork=fork),
        Branch((Unit(192),), pool),
    )


# Stretches of units before the blocks, each followed by a pool of stride 2.
STEM = (
    (Unit(32, (3, 3), 2), Unit(32, (3, 3), valid=True), Unit(64, (3, 3))),
    (Unit(80), Unit(192, (3, 3), valid=True)),
)
BLOCKS = (_a(32), _a(64), _a(64), _b(), _c(128), _c(160), _c(160), _c(192), _d(), _e("average"), _e("maximum"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionV3:
    """Nothing to set."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, 3) of images that are large enough."""
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < SMALLEST:
            raise UserError(f"inception takes images of 3 channels from {SMALLEST}x{SMALLEST} pixels, not {shape}")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "InceptionModule":
        """The module for samples of `shape`."""
        return InceptionModule(shape, rngs)


def _units(in_channels: int, units: tuple[Unit, ...], rngs: nnx.Rngs) -> tuple[nnx.List[Conv], int]:
    """The units one after another, and the channels that they give."""
    layers = []
    for unit in units:
        padding = "VALID" if unit.valid or unit.stride > 1 else "SAME"
        options: dict[str, Any] = {"strides": unit.stride, "padding": padding, "dtype": jnp.float32, "rngs": rngs}
        layers.append(conv(in_channels, unit.features, unit.kernel, **options))
        in_channels = unit.features
    return nnx.List(layers), in_channels


class BranchModule(nnx.Module):
    """See `Branch`. channels: that it gives."""

    def __init__(self, in_channels: int, branch: Branch, rngs: nnx.Rngs) -> None:
        self.pool = branch.pool
        self.units, self.channels = _units(in_channels, branch.units, rngs)
        if branch.fork:
            self.fork = nnx.List([_units(self.channels, (unit,), rngs)[0][0] for unit in branch.fork])
            self.channels = sum(unit.features for unit in branch.fork)

    def __call__(self, x: Image) -> Image:
        h = POOLS[self.pool](x)
        for unit in self.units:
            h = jax.nn.relu(unit(h))
        if not hasattr(self, "fork"):
            return h
        return jnp.concatenate([jax.nn.relu(unit(h)) for unit in self.fork], axis=-1)


class Block(nnx.Module):
    """Branches side by side. channels: that they give together."""

    def __init__(self, in_channels: int, branches: tuple[Branch, ...], rngs: nnx.Rngs) -> None:
        self.branches = nnx.List([BranchModule(in_channels, branch, rngs) for branch in branches])
        self.channels = sum(branch.channels for branch in self.branches)

    def __call__(self, x: Image) -> Image:
        return jnp.concatenate([branch(x) for branch in self.branches], axis=-1)


class InceptionModule(nnx.Module):
    """The network itself."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        channels = shape[-1]
        stem = []
        for units in STEM:
            layers, channels = _units(channels, units, rngs)
            stem.append(layers)
        self.stem = nnx.List(stem)
        blocks = []
        for branches in BLOCKS:
            blocks.append(Block(channels, branches, rngs))
            channels = blocks[-1].channels
        self.blocks = nnx.List(blocks)
        self.output = dense(channels, CLASSES, bias=False, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Image) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features and logits. x: (p − 128)/128."""
        h = x
        for units in self.stem:
            for unit in units:
                h = jax.nn.relu(unit(h))
            h = _halved(h)
        for block in self.blocks:
            h = block(h)
        features = jnp.mean(h, axis=(1, 2))
        return features, self.output(features)
