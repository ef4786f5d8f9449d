r"""Resampling by 2 along every spatial axis: naive, or by a separable FIR filter as in StyleGAN2 and NCSN++.

With k the filter, of sum 1 and n taps, p₀ = ⌊(n − 1)/2⌋, and x zero outside of its array, along each axis

    down   y_a = Σ_j k_j x_{2a + n−1−j−p₀}
    up     y_m = Σ_j 2 k_j x_{(m + n−2−j−p₀)/2}     over the j where the index is whole

(`upfirdn` of Karras et al. 2020 with the paddings of score_sde.) An up-sampled value is a sum of n/2 values, not of
n with every other one zero. Filter (1, 1) is the naive resampling: nearest neighbour and the mean of 2×2.

A convolution of size 3 after nearest neighbours sees a value of x twice under one window: with w its taps, along each
axis y_{2a} = w₀ x_{a−1} + (w₁ + w₂) x_a and y_{2a+1} = (w₀ + w₁) x_a + w₂ x_{a+1}. So it is one of size 2 for each of
the places that a value becomes, four in an image, with 4/9 of the products.
"""

import functools
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_sde.models.precision import Dtype, convolve

Image = Float[Array, "batch *space channels"]
NAIVE = (1.0, 1.0)


def upsample(x: Image, kernel: Sequence[float] = NAIVE, *, border: int = 0) -> Image:
    """Twice the size on every spatial axis, and `border` more values on each side."""
    if tuple(kernel) == NAIVE and not border:
        space = x.shape[1:-1]
        apart = x.reshape(x.shape[0], *itertools.chain(*((side, 1) for side in space)), x.shape[-1])
        twice = jnp.broadcast_to(apart, (x.shape[0], *itertools.chain(*((side, 2) for side in space)), x.shape[-1]))
        return twice.reshape(x.shape[0], *(2 * side for side in space), x.shape[-1])
    for axis in range(1, x.ndim - 1):
        x = _up(x, axis, kernel, border)
    return x


def upsample_convolve(x: Image, kernel: Float[Array, "*window in out"], dtype: Dtype) -> Image:
    """A same-padded convolution of size 3 with `upsample(x)`, computed on the places of x; see the module."""
    space = x.ndim - 2

    def along(axis: int, merged: Array, padding: tuple[tuple[int, int], ...]) -> Image:
        """The result, in both of its places along the axes from `axis` on."""
        if axis == space:
            return convolve(x, merged, dtype, padding=padding)
        first, middle, last = jnp.split(merged, 3, axis=axis)
        even = along(axis + 1, jnp.concatenate([first, middle + last], axis), (*padding, (1, 0)))
        odd = along(axis + 1, jnp.concatenate([first + middle, last], axis), (*padding, (0, 1)))
        both = jnp.stack([even, odd], axis=axis + 2)
        return both.reshape(*even.shape[: axis + 1], -1, *even.shape[axis + 2 :])

    return along(0, kernel, ())


def downsample(x: Image, kernel: Sequence[float] = NAIVE) -> Image:
    """Half the size on every spatial axis. A filter (1, 1) takes one mean; others a sum of shifted values an axis."""
    if tuple(kernel) == NAIVE:
        space = x.shape[1:-1]
        split = x.reshape(x.shape[0], *itertools.chain(*((side // 2, 2) for side in space)), x.shape[-1])
        return split.mean(axis=tuple(range(2, 2 * len(space) + 1, 2)))
    for axis in range(1, x.ndim - 1):
        taps, n = _normalised(kernel), len(kernel)
        before = (n - 1) // 2
        x = _shifted_sum(x, axis, [(n - 1 - j - before, tap) for j, tap in enumerate(taps)], x.shape[axis] // 2, 2)
    return x


def smooth(x: Image, kernel: Sequence[float], *, before: int, after: int) -> Image:
    """The filter alone, y_m = Σ_j k_j x_{m + n−1−j−before}: n − 1 values fewer than x with those before and after."""
    for axis in range(1, x.ndim - 1):
        taps, n = _normalised(kernel), len(kernel)
        size = x.shape[axis] + before + after - n + 1
        x = _shifted_sum(x, axis, [(n - 1 - j - before, tap) for j, tap in enumerate(taps)], size, 1)
    return x


def _up(x: Image, axis: int, kernel: Sequence[float], border: int) -> Image:
    taps, n, size = 2 * _normalised(kernel), len(kernel), x.shape[axis]
    before = (n - 1) // 2
    first, last = -border, 2 * size + border  # y_m for first ≤ m < last
    phases = []
    for start in (first, first + 1):
        offsets = [(start + n - 2 - j - before, tap) for j, tap in enumerate(taps)]
        whole = [(offset // 2, tap) for offset, tap in offsets if offset % 2 == 0]
        phases.append(_shifted_sum(x, axis, whole, (last - start + 1) // 2, 1))
    if border % 2:
        both = (last - first) // 2
        phases = [phase[(slice(None),) * axis + (slice(0, both),)] for phase in phases]
    together = jnp.stack(phases, axis=axis + 1)
    return together.reshape(*x.shape[:axis], last - first, *x.shape[axis + 1 :])


def _shifted_sum(x: Image, axis: int, parts: list[tuple[int, float]], size: int, stride: int) -> Image:
    """Σ tap x_{stride a + offset}, 0 ≤ a < size, over parts (offset, tap); x is zero outside of its array."""
    low = max(0, -min(offset for offset, _ in parts))
    high = max(0, max(offset for offset, _ in parts) + stride * (size - 1) + 1 - x.shape[axis])
    padded = jnp.pad(x, [(low, high) if each == axis else (0, 0) for each in range(x.ndim)])

    def shifted(offset: int, tap: float) -> Image:
        start = low + offset
        value = padded[(slice(None),) * axis + (slice(start, start + stride * (size - 1) + 1, stride),)]
        return value if tap == 1 else value * float(tap)  # a Python number, which leaves the precision as it is

    return functools.reduce(jnp.add, itertools.starmap(shifted, parts))


def _normalised(kernel: Sequence[float]) -> np.ndarray:
    taps = np.asarray(kernel, np.float64)
    return np.array([float(tap) for tap in taps / taps.sum()])
