r"""A learnt dequantiser: a conditional normalizing flow q(u | image) on (0, 1)^D, in place of uniform noise.

For data with integer levels k and any q,

    log P(k) ≥ E_{u ~ q(u|k)} [ log p(k + u) − log q(u | k) ]

which is uniform dequantisation's bound where q = 1, and tight where q is the model's posterior of u (Ho et al. 2019,
sec. 3.1; for diffusion models Song, Durkan, Murray & Ermon 2021, "Maximum likelihood training of score-based diffusion
models"). With x = low + w (k + u) this is `likelihood.bits_per_dim(log p_X(x) − log q, D, w)`.

From e to u, with σ the logistic function and each step's log-derivative beside it:

    e ~ Logistic(0, 1), each value                                             z ← e
    couplings:  z_d ← e^a logit F(z_d) + b  where the checkerboard is active    a + log f − log F − log(1 − F)
    u = σ(z)                                                                    log σ(z) + log σ(−z)

    F(z) = Σ_k π_k σ((z − μ_k) e^{−s_k}),  f = dF/dz

    log q(u) = Σ_d [ log σ(e) + log σ(−e) − Σ log-derivatives ]

π, μ, s, a and b of a coupling are a convolutional function of the image and of the inactive values, which the coupling
keeps: the Jacobian is triangular. The checkerboard is the parity of row + column + channel, so that the channels of a
pixel see one another, and turns over from one coupling to the next.

Two departures from Flow++ (Ho et al. 2019, sec. 3.1–3.2 and appendix):

- The base is logistic, not normal. σ maps it to the uniform law exactly, and a coupling with μ = s = a = b = 0 is the
  identity; the last convolution starts at 0. Training therefore starts at q = 1, at the very bound of uniform noise,
  where σ of a normal would start 0.19 nats a value away and would first have to learn that.
- No attention, data-dependent initialisation, dropout or channel permutations: a conditioner is plain residual
  convolutions, and the parity of the channel does the mixing.

Numerics. F and 1 − F are sums of positive terms in log space, logit F their difference: no tail is lost, and nothing
is divided. All of π, μ, s, a, b are smoothly bounded (`BOUNDS`). Then logit F lies between the smallest and largest
(z − μ_k) e^{−s_k}, and |z| ≤ e^{s+a} (|z| + μ) + b per coupling, which `MOST_COUPLINGS` keep finite in float32 for all
parameters whose conditioner is. A NaN in it stays one.

float32 near the ends: its spacing is 6e-8 below 1, so σ(z) rounds to 1 for z > 16.6; near 0 it is finer by far, and
σ(z) is a normal number for z > −87.3. u is rounded to the nearest number strictly inside (0, 1) instead; log q is that
of the unrounded u. k + u, in turn, is rounded to the spacing at k: see `data.levels`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from score_sde import rng
from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.functional import new_params, with_params
from score_sde.models.layers import conv
from score_sde.typing import Keys, Params, PerSample

Images = Float[Array, "batch height width channels"]
Parts = Float[Array, "batch height width channels components"]

# Largest |value| of what a conditioner gives. e^±3 and e^±2 allow a step 150 times steeper than the base; 10 is beyond
# all but 1e-4 of it.
BOUNDS = {"log_weight": 10.0, "mean": 10.0, "log_scale": 3.0, "log_gain": 2.0, "shift": 10.0}
# Half of them act on any one value: |z| < 30 e^{5·8} = 7e18, whose sum over 1e6 values is finite, too.
MOST_COUPLINGS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowDequantiser:
    """Settings of the flow.

    channels: width of the conditioners. blocks: residual blocks of each. couplings: how many, alternating between the
    two colours of the checkerboard. components: logistics in each mixture.
    """

    channels: int = 32
    blocks: int = 2
    couplings: int = 4
    components: int = 4

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.channels >= 1, f"channels must be at least 1, not {self.channels}")
            check.that(self.blocks >= 1, f"blocks must be at least 1, not {self.blocks}")
            check.that(
                2 <= self.couplings <= MOST_COUPLINGS,
                f"couplings must be from 2, to move every value, to {MOST_COUPLINGS}, not {self.couplings}",
            )
            check.that(self.components >= 1, f"components must be at least 1, not {self.components}")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is (height, width, channels)."""
        if len(shape) != 3 or min(shape) < 1:
            raise UserError(f"the dequantiser takes images (height, width, channels), not samples of shape {shape}")

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> "FlowDequantiserModule":
        """The module for images of `shape`."""
        return FlowDequantiserModule(self, shape, rngs)


@dataclasses.dataclass(frozen=True)
class Dequantiser:
    """The flow as pure functions of its parameters, a nested dict of float32 arrays.

    An image is given at its levels, scaled to [−1, 1): 2 level/levels − 1.
    """

    settings: FlowDequantiser
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.settings.check_shape(self.shape)

    def init(self, key: jax.Array) -> Params:
        """New parameters, with which q is uniform. Traceable, so that they can be created sharded."""
        return new_params(self.settings, self.shape, key)

    def apply(self, params: Params, image: Images, keys: Keys) -> tuple[Images, PerSample]:
        """A draw u ~ q(u | image), strictly inside (0, 1), and log q(u | image) in nats, summed over the values."""
        if keys.shape != image.shape[:1]:
            raise UserError(f"the dequantiser takes one key a sample, not keys {keys.shape} for images {image.shape}")
        return self.transport(params, image, logistic(keys, image.shape[1:]))

    def transport(self, params: Params, image: Images, noise: Images) -> tuple[Images, PerSample]:
        """Where the flow takes `noise`, drawn from the standard logistic law, and log q there; in its dtype."""
        if image.shape[1:] != self.shape or noise.shape != image.shape:
            raise UserError(
                f"the dequantiser was made for images (batch, {', '.join(map(str, self.shape))}) and noise alike, "
                f"not for {image.shape} and {noise.shape}"
            )
        return with_params(self.settings, self.shape, params)(image, noise)


def logistic(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Standard logistic draws in float32, `shape` per sample.

    From uniform draws at the midpoints (n + ½) 2⁻²³, all of them exact in float32: the law is symmetric, and no draw
    is infinite or, as with draws that may be 0, an outlier at the smallest of floats; |e| ≤ 24 log 2 = 16.6.
    """
    uniform = rng.uniform(keys, shape) + 2.0**-24
    return jnp.log(uniform) - jnp.log1p(-uniform)


def mixture_logit(z: Images, log_weight: Parts, mean: Parts, log_scale: Parts) -> tuple[Images, Images]:
    """logit F(z) of a mixture of logistics, and the logarithm of its derivative f/(F (1 − F))."""
    w = (z[..., None] - mean) * jnp.exp(-log_scale)
    below, above = log_weight + log_sigmoid(w), log_weight + log_sigmoid(-w)
    log_cdf, log_survival = jax.nn.logsumexp(below, axis=-1), jax.nn.logsumexp(above, axis=-1)
    log_density = jax.nn.logsumexp(below + log_sigmoid(-w) - log_scale, axis=-1)
    return log_cdf - log_survival, log_density - log_cdf - log_survival


class FlowDequantiserModule(nnx.Module):
    """The flow itself; see `FlowDequantiser` for its settings."""

    def __init__(self, settings: FlowDequantiser, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        channels = settings.channels
        self.embed_in = conv(shape[-1], channels, 3, dtype=None, rngs=rngs)
        self.embed_block = Block(channels, rngs=rngs)
        couplings = [Coupling(settings, shape[-1], number % 2, rngs=rngs) for number in range(settings.couplings)]
        self.couplings = nnx.List(couplings)

    def __call__(self, image: Images, noise: Images) -> tuple[Images, PerSample]:
        """u and log q(u | image)."""
        embedding = self.embed_block(self.embed_in(image))
        z, log_q = noise, log_sigmoid(noise) + log_sigmoid(-noise)
        for coupling in self.couplings:
            z, log_derivative = coupling(z, embedding)
            log_q = log_q - log_derivative  # value by value, where near-equal terms cancel before any large sum
        log_q = log_q - (log_sigmoid(z) + log_sigmoid(-z))
        return _open_sigmoid(z), jnp.sum(log_q, axis=(1, 2, 3))


class Coupling(nnx.Module):
    """z ← e^a logit F(z) + b on one colour of the checkerboard, by the other's values and the image's embedding."""

    def __init__(self, settings: FlowDequantiser, image_channels: int, colour: int, *, rngs: nnx.Rngs) -> None:
        self.components, self.colour = settings.components, colour
        width, outputs = settings.channels, image_channels * (3 * settings.components + 2)
        self.conv_in = conv(image_channels + width, width, 3, dtype=None, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(settings.blocks)])
        # Exactly 0, not the nearly 0 of the score networks: then q is exactly uniform. Only this layer has a gradient
        # at the first step; all have from the second on.
        zero = initializers.zeros
        self.conv_out = nnx.Conv(width, outputs, (3, 3), kernel_init=zero, rngs=rngs)

    def __call__(self, z: Images, embedding: Float[Array, "batch height width features"]) -> tuple[Images, Images]:
        """The new values and the logarithms of their derivatives, 0 where not active."""
        active = np.indices(z.shape[1:]).sum(axis=0)[None] % 2 == self.colour
        # tanh(z/2) = 2 σ(z) − 1: the value so far on the scale of the image, bounded whatever z is.
        seen = jnp.where(active, jnp.zeros_like(z), jnp.tanh(z / 2))
        h = self.conv_in(jnp.concatenate([seen, embedding], axis=-1))
        for block in self.blocks:
            h = block(h)
        raw = self.conv_out(jax.nn.swish(h)).reshape(*z.shape, 3 * self.components + 2)
        weight, mean, log_scale = jnp.split(raw[..., 2:], 3, axis=-1)
        # Equal components have equal gradients and would stay equal, one logistic, for ever. Locations that move at
        # different speeds part at the first step, and leave the start the identity.
        speed = jnp.asarray(2 * np.arange(1, self.components + 1) / (self.components + 1), z.dtype)
        logit, log_derivative = mixture_logit(
            z,
            jax.nn.log_softmax(_bounded("log_weight", weight), axis=-1),
            _bounded("mean", mean * speed[None, None, None, None, :]),
            _bounded("log_scale", log_scale),
        )
        log_gain, shift = _bounded("log_gain", raw[..., 0]), _bounded("shift", raw[..., 1])
        moved = jnp.exp(log_gain) * logit + shift
        return jnp.where(active, moved, z), jnp.where(active, log_derivative + log_gain, jnp.zeros_like(z))


class Block(nnx.Module):
    """A residual block: swish, conv, swish, conv. No normalisation: no other pixel or sample sets a value's scale."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv_in = conv(channels, channels, 3, dtype=None, rngs=rngs)
        self.conv_out = conv(channels, channels, 3, dtype=None, rngs=rngs)

    def __call__(self, h: Float[Array, "batch height width features"]) -> Float[Array, "batch height width features"]:
        return (h + self.conv_out(jax.nn.swish(self.conv_in(jax.nn.swish(h))))) * math.sqrt(0.5)


def _bounded(name: str, raw: Array) -> Array:
    """A smooth bound on |raw|, with slope 1 at 0."""
    return BOUNDS[name] * jnp.tanh(raw / BOUNDS[name])


def _open_sigmoid(z: Images) -> Images:
    """σ(z), to the nearest number strictly between 0 and 1. `clip` keeps a NaN."""
    info = jnp.finfo(z.dtype)
    return jnp.clip(jax.nn.sigmoid(z), float(info.tiny), 1 - float(info.epsneg))
