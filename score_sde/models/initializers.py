"""Initial values of parameters, and how those of a whole network are drawn: few programs instead of one for each.

The numbers are those of `jax.nn.initializers` from the key fold_in(key, i) of the i-th parameter. To compile their
draws took longer than anything else of a network's start: a U-Net has hundreds, and XLA unrolls the short axes of a
kernel on a CPU, one of 3×3×8×9 for 5 s instead of 0.3 s. A number is a function of its key and of its place in the
array as a row. So arrays of equally many numbers are drawn together, as rows. Those above `LARGE` are drawn by
themselves and in their own shape, since only so they are made where their shards lie.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

LARGE = 2**20  # numbers: 4 MiB

Distribution = Literal["uniform", "normal", "truncated_normal"]
DISTRIBUTIONS: dict[str, Callable[..., Array]] = {
    "uniform": functools.partial(jax.random.uniform, minval=-1, maxval=1),
    "normal": jax.random.normal,
    "truncated_normal": functools.partial(jax.random.truncated_normal, lower=-2, upper=2),
}
TRUNCATED = 0.87962566103423978  # deviation of the normal that is cut off at two of its own

Shape = tuple[int, ...]
# What layers pass from `rngs.params()` on to an initialiser: a key, or a function of what is drawn from it.
Source = Key[Array, ""] | Callable[[Distribution, Shape], Array]

zeros = nnx.initializers.zeros


def normal(deviation: float = 1.0) -> nnx.Initializer:
    """Normal with mean 0."""
    return _drawn("normal", lambda shape: deviation)


def uniform(bound: float) -> nnx.Initializer:
    """Uniform on ±bound."""
    return _drawn("uniform", lambda shape: bound)


def variance_scaling(
    scale: float, mode: Literal["fan_in", "fan_out", "fan_avg"], distribution: Distribution
) -> nnx.Initializer:
    """Mean 0 and variance `scale` over the fan of a kernel (*window, in, out).

    mode: "fan_in", of inputs; "fan_out", of outputs; "fan_avg", the mean of both. distribution: "truncated_normal" is
    cut off at two deviations of the normal that it is taken from.
    """

    def factor(shape: Shape) -> np.float32:
        window = math.prod(shape[:-2])
        fan_in, fan_out = window * shape[-2], window * shape[-1]
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        variance = np.float32(scale / fan)  # and all else in float32, as flax has it: to the last bit
        if distribution == "uniform":
            return np.sqrt(np.float32(3) * variance)
        return np.sqrt(variance) / np.float32(TRUNCATED if distribution == "truncated_normal" else 1)

    return _drawn(distribution, factor)


def _drawn(distribution: Distribution, factor: Callable[[Shape], float | np.float32]) -> nnx.Initializer:
    """The initialiser that makes `factor(shape)` times numbers of a distribution."""

    def init(source: Source, shape: Shape, *_: Any, **__: Any) -> Float[Array, "*shape"]:
        draw = source if callable(source) else functools.partial(_draw, source)
        return factor(shape) * draw(distribution, shape)

    return init


def _draw(key: Key[Array, ""], distribution: Distribution, shape: Shape) -> Float[Array, "*shape"]:
    return DISTRIBUTIONS[distribution](key, shape=shape, dtype=jnp.float32)


class Draws:
    """Stands for the `nnx.Rngs(key)` by which a module is built, of which layers ask `params()` alone.

    Once built in the abstract (`nnx.eval_shape`), it knows what every parameter draws, and what `drawn` returns stands
    for it when the module is built with its numbers.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[Distribution, Shape] | None] = []

    def params(self) -> Source:
        """Of the next parameter; what it asks for is noted."""
        number = len(self._wanted)
        self._wanted.append(None)  # as it stays for one that begins as zeros

        def draw(distribution: Distribution, shape: Shape) -> Array:
            self._wanted[number] = distribution, shape
            return jnp.zeros(shape, jnp.float32)

        return draw

    def drawn(self, key: Key[Array, ""]) -> "Drawn":
        """All that was asked for."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(len(self._wanted)))
        alike, values = collections.defaultdict(list), {}
        for number, (distribution, shape) in ((number, wanted) for number, wanted in enumerate(self._wanted) if wanted):
            if math.prod(shape) > LARGE:
                values[number] = _draw(keys[number], distribution, shape)
            else:
                alike[distribution, math.prod(shape)].append(number)
        for (distribution, size), numbers in alike.items():
            rows = jax.vmap(functools.partial(_draw, distribution=distribution, shape=(size,)))(keys[np.array(numbers)])
            values |= dict(zip(numbers, rows, strict=True))
        return Drawn(values.get(number) for number in range(len(self._wanted)))


class Drawn:
    """As `Draws`, with the numbers that it draws."""

    def __init__(self, values: Iterable[Array | None]) -> None:
        self._values: Iterator[Any] = iter(values)

    def params(self) -> Source:
        """Of the next parameter."""
        value = next(self._values)
        return lambda distribution, shape: value.reshape(shape)
