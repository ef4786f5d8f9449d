r"""Augmentation that does not leak: images are transformed at random and the network is told how, so that it learns
from all of them what images are where it is told nothing, which is that they were not transformed.

At probability p, with the parameter 0 where a transform is not drawn, and in this order:

    drawn with probability   parameter                             the network is told
    min(1, 10⁸ p)/2          1: left and right exchanged           1
    p/2                      1: top and bottom exchanged           1
    p                        s ~ N(0, 1), scale 2^(s/5)            s
    p                        θ ~ U(−π, π), rotation                cos θ − 1, sin θ
    p                        a ~ N(0, 1), stretch 2^(±a/5)         a cos φ, a sin φ
    ½                        φ ~ U(−π, π), its direction
    p                        τ ~ N(0, I), shift                    τ_x, τ_y

After the exchanges, what is at q = (right, down), in pixels from the centre c of the image of width W and height H,
comes from

    A (q − t),   A = 2^(−s/5) R(θ) R(−φ) diag(2^(−a/5), 2^(a/5)) R(φ),   t = (W τ_x, H τ_y)/8

with R(θ) = [[cos θ, −sin θ], [sin θ, cos θ]]. Along each axis, h being the 12 numbers of sym6's low-pass filter,

    up[j] = Σ_i h[j − 2i + 5] x[i]                   twice the pixels, j the place j/2
    warped[j] = up[2 (A (j/2 − c − t) + c)]          bilinear
    x'[i] = Σ_j h[j − 2i + 5] warped[j]

where x goes on by reflection for one image on each side, and is 0 after that. Σ_j h[j − 2i] h[j − 2k] = δ_ik, so that
whole pixels are shifted without loss. The published code reflects only as far as the farthest transform of its batch
reaches, by which a sample there, and not here, depends on the others, by up to 1e-4.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", 2020, appendix B; Karras et al.,
"Elucidating the Design Space of Diffusion-Based Generative Models", 2022, appendix F.2, with its choice of transforms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float

from score_sde import rng
from score_sde.typing import Keys, PerSample

Plane = Float[Array, "height width"]
Images = Float[Array, "batch height width channels"]
FEATURES = 9  # numbers that the network is told

SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)


class Transform(NamedTuple):
    """The parameters of each sample's transform; see the module."""

    mirrored: Bool[Array, "batch"]  # left and right exchanged
    inverted: Bool[Array, "batch"]  # top and bottom exchanged
    scale: PerSample  # s
    rotation: PerSample  # θ
    stretch: PerSample  # a
    direction: PerSample  # φ
    shift: Float[Array, "batch 2"]  # τ


def augment(x: Images, keys: Keys, p: float) -> tuple[Images, Float[Array, "batch 9"]]:
    """The images transformed, and what the network is told of it. p: in [0, 1]."""
    transform = draw(keys, p)
    return apply(transform, x), told(transform)


def draw(keys: Keys, p: float) -> Transform:
    """Random transforms, at probability p."""
    u, z = rng.uniform(rng.child(keys, 0), (9,)), rng.normal(rng.child(keys, 1), (4,))
    angles = np.pi * (2 * u[:, 7:] - 1)
    drawn = lambda coin, chance, value: jnp.where(u[:, coin] < chance, value, 0.0)
    return Transform(
        mirrored=u[:, 0] < min(1.0, 1e8 * p) / 2,
        inverted=u[:, 1] < p / 2,
        scale=drawn(2, p, z[:, 0]),
        rotation=drawn(3, p, angles[:, 0]),
        stretch=drawn(4, p, z[:, 1]),
        direction=drawn(5, 0.5, angles[:, 1]),
        shift=jnp.where(u[:, 6:7] < p, z[:, 2:], 0.0),
    )


def told(transform: Transform) -> Float[Array, "batch 9"]:
    """What the network is told of the transforms."""
    exchanges = [each.astype(jnp.float32) for each in (transform.mirrored, transform.inverted)]
    theta, a, phi = transform.rotation, transform.stretch, transform.direction
    turns = [jnp.cos(theta) - 1, jnp.sin(theta), a * jnp.cos(phi), a * jnp.sin(phi)]
    return jnp.stack([*exchanges, transform.scale, *turns, *transform.shift.T], axis=-1)


def apply(transform: Transform, x: Images) -> Images:
    """The images transformed. Those that are only mirrored or inverted, or not at all, are not resampled."""
    across = lambda each: each[:, None, None, None]
    x = jnp.where(across(transform.mirrored), x[:, :, ::-1], x)
    x = jnp.where(across(transform.inverted), x[:, ::-1], x)
    moved = jnp.any(told(transform)[:, 2:] != 0, axis=-1)
    return jnp.where(across(moved), jax.vmap(_resampled)(transform, x), x)


def _resampled(transform: Transform, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
    """One image scaled, rotated, stretched and shifted."""
    height, width, _ = x.shape
    (tau_x, tau_y), narrower = transform.shift, jnp.exp2(-0.2 * transform.stretch)
    places = [(_places(side) / 2 - (side - 1) / 2).astype(np.float32) for side in (height, width)]
    down, right = jnp.meshgrid(*places, indexing="ij")
    right, down = _turned(right - width * tau_x / 8, down - height * tau_y / 8, transform.direction)
    right, down = _turned(narrower * right, down / narrower, transform.rotation - transform.direction)
    twice = 2 * jnp.exp2(-0.2 * transform.scale)
    index = [twice * down + 3 * (height - 1), twice * right + 3 * (width - 1)]  # of what `_extended` begins with
    up = _along_both(_extended(height), _extended(width), x)
    warped = jax.vmap(lambda channel: map_coordinates(channel, index, order=1), -1, -1)(up)
    return _along_both(_filter(_places(height), height).T, _filter(_places(width), width).T, warped)


def _turned(right: Plane, down: Plane, angle: Float[Array, ""]) -> tuple[Plane, Plane]:
    """R(angle) (right, down)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * right - sin * down, sin * right + cos * down


def _places(side: int) -> np.ndarray:
    """The j that x' is made of."""
    return np.arange(-5, 2 * side + 5)


def _filter(places: np.ndarray, side: int) -> np.ndarray:
    """h[j − 2i + 5], a row for each j of `places`."""
    k = places[:, None] - 2 * np.arange(side) + 5
    return np.where((k >= 0) & (k < len(SYM6)), SYM6[k % len(SYM6)], 0)


def _extended(side: int) -> np.ndarray:
    """From x to `up` of the image with its reflections, j = −2 (side − 1) first."""
    whole = 3 * side - 2
    reflected = np.pad(np.eye(side), ((side - 1, side - 1), (0, 0)), mode="reflect")
    return _filter(np.arange(2 * whole), whole) @ reflected


def _along_both(rows: np.ndarray, columns: np.ndarray, x: Array) -> Array:
    """The matrices times the image's axes, in float32 on any device."""
    return jnp.einsum("ai,bj,ijc->abc", np.float32(rows), np.float32(columns), x, precision="highest")
