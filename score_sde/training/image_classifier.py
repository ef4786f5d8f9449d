r"""Training of a small classifier of images, whose features serve to compare sets of images.

Cross-entropy by AdamW; the rate rises over the first tenth of the steps and falls to 0 as ½ (1 + cos). The same
settings, data and seed give the same parameters, bit for bit, on the same machine.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from score_sde import rng
from score_sde.typing import Params
from score_sde.writers import Progress

TEST_BATCH = 500


class Network(Protocol):
    """What is trained: see `models.FeatureNetwork`."""

    def init(self, key: jax.Array) -> Params: ...

    def apply(self, params: Params, x: Any) -> tuple[Array, Array]:
        """Features and logits."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """learning_rate: the highest. shift: pixels by which images are moved at most, along each axis. flip: whether every
    second image, on average, is mirrored."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    shift: int = 1
    flip: bool = False
    seed: int = 0


def train(
    name: str,
    network: Network,
    images: Float32[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
    recipe: Recipe,
) -> Params:
    """The parameters, on the host. name: for the progress bar. Of an epoch, images that fill no batch are left out."""
    size = min(recipe.batch_size, len(images))
    per_epoch = len(images) // size
    steps = recipe.epochs * per_epoch
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, steps // 10, steps)
    optimiser = optax.adamw(rate, weight_decay=recipe.weight_decay)
    params = jax.jit(network.init)(rng.stream(recipe.seed, "image classifier parameters"))
    state = optimiser.init(params)

    def loss(params: Params, x: Any, label: Any) -> Float[Array, ""]:
        _, logits = network.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @jax.jit
    def step(params: Params, state: Any, x: Any, label: Any, number: Any) -> tuple[Params, Any]:
        key = rng.at_step(rng.stream(recipe.seed, "image classifier"), number)
        gradient = jax.grad(loss)(params, _augmented(x, rng.for_samples(key, jnp.arange(size)), recipe), label)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    progress = Progress(f"training {name}", steps)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(images))
        for place in range(per_epoch):
            index = order[place * size : (place + 1) * size]
            number = np.int32(epoch * per_epoch + place)
            params, state = step(params, state, images[index], labels[index], number)
            progress.advance()
    progress.close()
    return jax.device_get(params)


def accuracy(
    network: Network,
    params: Params,
    images: Float32[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n"],
) -> float:
    """The share of images told right."""
    logits = jax.jit(lambda params, x: network.apply(params, x)[1])
    parts = range(0, len(images), TEST_BATCH)
    found = [np.argmax(logits(params, images[start : start + TEST_BATCH]), axis=1) for start in parts]
    return float(np.mean(np.concatenate(found) == labels))


def _augmented(x: Float[Array, "batch height width channels"], keys: Any, recipe: Recipe) -> Array:
    """Images moved, with what comes in as at their edges, and mirrored."""
    shift = recipe.shift
    padded = jnp.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")

    def one(image: Array, key: jax.Array) -> Array:
        where, mirror = jax.random.split(key)
        row, column = jax.random.randint(where, (2,), 0, 2 * shift + 1)
        image = jax.lax.dynamic_slice(image, (row, column, jnp.zeros_like(row)), x.shape[1:])
        flipped = recipe.flip & jax.random.bernoulli(mirror)
        return jnp.where(flipped, image[:, ::-1], image)

    return jax.vmap(one)(padded, keys)
