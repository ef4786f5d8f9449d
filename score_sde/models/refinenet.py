r"""The RefineNet of NCSN and NCSNv2 (Song & Ermon 2019, 2020; Lin et al. 2017): residual stages, each then refined.

    stage     two residual blocks: norm, activation, conv, norm, activation, conv, + shortcut; the first may halve the
              resolution (a convolution, then the mean of 2×2) or dilate its convolutions instead
    refine    of a stage and of what is refined below: residual convolution units (RCU) each, convolutions to a common
              width and size (MSF), chained residual pooling (CRP), residual convolution units

Normalisation is "instance norm++": with μ_c the mean of channel c over the pixels, and m, v mean and variance of μ
over channels,

    norm(x)_c = γ_c ( (x_c − μ_c)/√(var_c + ε) + α_c (μ_c − m)/√(v + ε) ) + β_c

conditional on the noise level by its own γ, α, β for each of N levels in NCSN, unconditional in NCSNv2. ε = 1e-5; v has
N − 1 in its denominator, as in the original.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from score_sde.models import initializers
from score_sde.models.attention import CrossAttention
from score_sde.models.conditioning import ConditionEmbedding
from score_sde.models.layers import DTYPES, Conv, Dtype, across, conv, dense, parameter, rematerialised
from score_sde.models.resample import downsample
from score_sde.models.sigmas import Sigmas, over
from score_sde.typing import Condition

Image = Float[Array, "batch height width channels"]
EPSILON = 1e-5
PYTORCH = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
POOL = 5


@dataclasses.dataclass(frozen=True)
class Stage:
    """width: times the network's. down: whether it halves the resolution. dilation: of its convolutions."""

    width: int
    down: bool = False
    dilation: int = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """stages from the top, and the widths of their refinements from the bottom."""

    stages: tuple[Stage, ...]
    refined: tuple[int, ...]

    @property
    def factor(self) -> int:
        """What the sides of an image must be divisible by."""
        return 2 ** sum(stage.down for stage in self.stages)


_DOWN, _DILATED = Stage(2, down=True), (Stage(4, dilation=2), Stage(4, dilation=4))
LAYOUTS = {
    64: Layout((Stage(1), _DOWN, Stage(2, dilation=2), Stage(2, dilation=4)), (2, 2, 1, 1)),
    128: Layout((Stage(1), _DOWN, _DOWN, *_DILATED), (4, 2, 2, 1, 1)),
    256: Layout((Stage(1), _DOWN, _DOWN, _DOWN, *_DILATED), (4, 2, 2, 2, 1, 1)),
}


class RefineNetModule(nnx.Module):
    """The network; levels: of conditional normalisation, 0 for none."""

    def __init__(
        self, settings: Any, layout: Layout, levels: int, shape: tuple[int, ...], *, max_pool: bool, rngs: nnx.Rngs
    ) -> None:
        dtype, width = DTYPES[settings.dtype], settings.channels
        build = _Builder(levels, 4 * width if settings.has_features else 0, dtype, rngs)
        self.settings = settings
        self.condition = ConditionEmbedding(settings, 4 * width, dtype=dtype, rngs=rngs)
        self.conv_in = build.conv(shape[-1] + settings.image_channels, width)
        stages, channels = [], width
        for stage in layout.stages:
            out = stage.width * width
            first = ResidualBlock(build, channels, out, changes=stage.down or stage.dilation > 1, stage=stage)
            stages.append(nnx.List([first, ResidualBlock(build, out, out, changes=False, stage=stage)]))
            channels = out
        self.stages = nnx.List(stages)
        if settings.token_features:
            self.cross = CrossAttention(channels, settings.token_features, dtype=dtype, rngs=rngs)
        refine, below = [], None
        for number, (stage, out) in enumerate(zip(reversed(layout.stages), layout.refined, strict=True)):
            inputs = [stage.width * width, *([] if below is None else [below])]
            last = number == len(layout.stages) - 1
            refine.append(RefineBlock(build, inputs, out * width, last=last, max_pool=max_pool))
            below = out * width
        self.refine = nnx.List(refine)
        self.norm_out = build.norm(width)
        self.conv_out = build.conv(width, shape[-1])

    def __call__(
        self,
        x: Image,
        noise_condition: Float[Array, "batch"],
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Image:
        """The raw prediction, float32, of the shape of x."""
        settings: Sigmas = self.settings
        features = self.condition.features(condition, len(x))
        told = None if features is None else jax.nn.swish(features)
        run = lambda part, *inputs: rematerialised(part, settings.remat)(*inputs)  # type: ignore[attr-defined]
        h = self.conv_in(self.condition.with_image(settings.to_centre(x), condition))
        layers = []
        for stage in self.stages:
            for block in stage:
                h = run(block, h, noise_condition, told)
            layers.append(h)
        if settings.token_features:
            layers[-1] = self.cross(layers[-1], *self.condition.tokens(condition, len(x)))
        refined: list[Image] = []
        for refine, layer in zip(self.refine, reversed(layers), strict=True):
            refined = [run(refine, [layer, *refined], noise_condition)]
        output = self.conv_out(jax.nn.elu(self.norm_out(refined[0], noise_condition))).astype(jnp.float32)
        return over(output, settings.sigma_of_level(noise_condition)) if settings.scale_by_sigma else output


@dataclasses.dataclass(frozen=True)
class _Builder:
    """What all parts are made with. levels: of conditional normalisation. told: features of a condition, 0 for none."""

    levels: int
    told: int
    dtype: Dtype
    rngs: nnx.Rngs

    def conv(self, inputs: int, outputs: int, kernel: int = 3, *, dilation: int = 1, bias: bool = True) -> Conv:
        options = {"init": PYTORCH, "bias": bias, "dtype": self.dtype, "rngs": self.rngs, "kernel_dilation": dilation}
        return conv(inputs, outputs, kernel, **options)

    def norm(self, channels: int) -> "InstanceNorm":
        return InstanceNorm(channels, self.levels, dtype=self.dtype, rngs=self.rngs)


class InstanceNorm(nnx.Module):
    """Instance norm++; see the module. Between two levels γ, α and β are interpolated."""

    def __init__(self, channels: int, levels: int, *, dtype: Dtype, rngs: nnx.Rngs) -> None:
        shape = (levels, channels) if levels else (channels,)
        axes = ("table", "channels") if levels else ("channels",)
        near_one = lambda: parameter(1 + initializers.normal(0.02)(rngs.params(), shape), *axes)
        self.gamma, self.alpha, self.beta = near_one(), near_one(), parameter(jnp.zeros(shape), *axes)
        self.levels, self.dtype = levels, dtype

    def __call__(self, x: Image, level: Float[Array, "batch"]) -> Image:
        x_32 = x.astype(jnp.float32)
        mean = x_32.mean(axis=(1, 2))
        centred = x_32 - across(mean, x.ndim)
        normalised = centred * jax.lax.rsqrt(across(jnp.mean(centred**2, axis=(1, 2)), x.ndim) + EPSILON)
        spread = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
        means = (mean - mean.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(spread + EPSILON)
        gamma, alpha, beta = (
            across(self._of(each[...], level), x.ndim) for each in (self.gamma, self.alpha, self.beta)
        )
        return (gamma * (normalised + alpha * across(means, x.ndim)) + beta).astype(self.dtype)

    def _of(self, table: Array, level: Float[Array, "batch"]) -> Float[Array, "rows channels"]:
        if not self.levels:
            return table[None]
        level = jnp.clip(level, 0, self.levels - 1)
        below = jnp.clip(jnp.floor(level).astype(jnp.int32), 0, max(self.levels - 2, 0))
        share = (level - below.astype(level.dtype))[:, None]
        return (1 - share) * table[below] + share * table[jnp.minimum(below + 1, self.levels - 1)]


class ResidualBlock(nnx.Module):
    """norm, activation, conv, norm, activation, conv, + shortcut. changes: whether it is the first of a stage that
    halves the resolution or dilates."""

    def __init__(self, build: _Builder, inputs: int, outputs: int, *, changes: bool, stage: Stage) -> None:
        middle = inputs if changes else outputs
        self.down = changes and stage.down
        self.norm_in, self.norm_out = build.norm(inputs), build.norm(middle)
        self.conv_in = build.conv(inputs, middle, dilation=stage.dilation)
        self.conv_out = build.conv(middle, outputs, dilation=stage.dilation)
        self.told = dense(build.told, middle, dtype=build.dtype, rngs=build.rngs) if build.told else None
        kernel = 3 if stage.dilation > 1 else 1
        has_shortcut = changes or inputs != outputs
        self.shortcut = build.conv(inputs, outputs, kernel, dilation=stage.dilation) if has_shortcut else None

    def __call__(self, x: Image, level: Float[Array, "batch"], told: Any) -> Image:
        h = self.conv_in(jax.nn.elu(self.norm_in(x, level)))
        if self.told is not None:
            h = h + across(self.told(told), h.ndim)
        h = self.conv_out(jax.nn.elu(self.norm_out(h, level)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return downsample(h) + downsample(shortcut) if self.down else h + shortcut


class ResidualConvUnits(nnx.Module):
    """`count` times x + conv(act(conv(act(x)))), each convolution after a normalisation where that is conditional."""

    def __init__(self, build: _Builder, channels: int, count: int) -> None:
        self.convs = nnx.List([build.conv(channels, channels, bias=False) for _ in range(2 * count)])
        self.norms = nnx.List([build.norm(channels) for _ in range(2 * count if build.levels else 0)])

    def __call__(self, x: Image, level: Float[Array, "batch"]) -> Image:
        for number in range(0, len(self.convs), 2):
            h = x
            for each in (number, number + 1):
                h = self.norms[each](h, level) if len(self.norms) else h
                h = self.convs[each](jax.nn.elu(h))
            x = x + h
        return x


class RefineBlock(nnx.Module):
    """See the module. inputs: widths of what is refined together."""

    def __init__(self, build: _Builder, inputs: list[int], outputs: int, *, last: bool, max_pool: bool) -> None:
        several = inputs if len(inputs) > 1 else []
        self.max_pool = max_pool
        self.adapt = nnx.List([ResidualConvUnits(build, channels, 2) for channels in inputs])
        self.fuse_norms = nnx.List([build.norm(channels) for channels in several if build.levels])
        self.fuse = nnx.List([build.conv(channels, outputs) for channels in several])
        self.pool_norms = nnx.List([build.norm(outputs) for _ in range(2 if build.levels else 0)])
        self.pool_convs = nnx.List([build.conv(outputs, outputs, bias=False) for _ in range(2)])
        self.output = ResidualConvUnits(build, outputs, 3 if last else 1)

    def __call__(self, inputs: list[Image], level: Float[Array, "batch"]) -> Image:
        parts = [adapt(x, level) for adapt, x in zip(self.adapt, inputs, strict=True)]
        h = parts[0]
        if len(self.fuse):
            size = h.shape[1:3]
            if len(self.fuse_norms):
                parts = [norm(part, level) for norm, part in zip(self.fuse_norms, parts, strict=True)]
            fused = [resized(fuse(part), size) for fuse, part in zip(self.fuse, parts, strict=True)]
            h = fused[0] + fused[1]
        h = path = jax.nn.elu(h)
        for number, convolution in enumerate(self.pool_convs):
            path = self.pool_norms[number](path, level) if len(self.pool_norms) else path
            path = convolution(max_pool(path) if self.max_pool else mean_pool(path))
            h = h + path
        return self.output(h, level)


def max_pool(x: Image) -> Image:
    """The largest of 5×5, of those inside the image."""
    for axis in (1, 2):
        x = _over_window(x, axis, -jnp.inf, jnp.maximum)
    return x


def mean_pool(x: Image) -> Image:
    """The mean of 5×5, with zeros outside of the image."""
    for axis in (1, 2):
        x = _over_window(x, axis, 0.0, jnp.add) / POOL
    return x


def _over_window(x: Image, axis: int, outside: float, operation: Any) -> Image:
    """Five shifted arrays joined: separable, and much faster on a CPU than a window reduction."""
    reach = POOL // 2
    padded = jnp.pad(x, [(reach, reach) if each == axis else (0, 0) for each in range(4)], constant_values=outside)
    total = jax.lax.slice_in_dim(padded, 0, x.shape[axis], axis=axis)
    for start in range(1, POOL):
        total = operation(total, jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis))
    return total


def resized(x: Image, size: tuple[int, ...]) -> Image:
    """Bilinear, with the corners of both grids at the same places (PyTorch's `align_corners`)."""
    for axis, out in zip((1, 2), size, strict=True):
        if x.shape[axis] != out:
            x = jnp.moveaxis(jnp.tensordot(jnp.asarray(_linear(x.shape[axis], out), x.dtype), x, (1, axis)), 0, axis)
    return x


def _linear(inputs: int, outputs: int) -> Float[np.ndarray, "outputs inputs"]:
    place = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    below = np.clip(np.floor(place).astype(int), 0, max(inputs - 2, 0))
    weights = np.zeros((outputs, inputs))
    weights[np.arange(outputs), below] = 1 - (place - below)
    weights[np.arange(outputs), np.minimum(below + 1, inputs - 1)] += place - below
    return weights
