"""One training step, a pure function of the state and a batch.

Of a batch in `accumulate` parts, one after another, loss and gradient are those of the whole batch, as is all that is
drawn for its samples: the mean over equal parts of a part's mean is the mean, and keys and times are those of the
sample's place in the batch. Dropout alone differs, which is drawn once for each part.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from score_sde import rng
from score_sde.data import augmentation
from score_sde.data.levels import Levels
from score_sde.data.source import Batch
from score_sde.denoiser import Model
from score_sde.losses import Loss, Objective, Times, Weighting, schedule_loss
from score_sde.sde import SDE
from score_sde.training import ema
from score_sde.training.optimiser import evaluated
from score_sde.training.state import TrainState
from score_sde.typing import Condition, Keys, Params, PerSample, Time

NO_LABEL = -1


def make_step(
    *,
    model: Model,
    objective: Objective,
    weighting: Weighting,
    times: Times,
    optimiser: optax.GradientTransformation,
    levels: Levels,
    profiles: Sequence[ema.Profile],
    label_drop: float,
    seed: int,
    flip: bool = False,
    crop: int = 0,
    augment: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step to be compiled: dequantise, augment, loss and gradient, update, averages.

    profiles: of the averages. label_drop: the share of labels that are hidden. flip: whether half of the
    images are mirrored, see `mirrored`. crop: see `cropped`. augment: the probability in `data.augmentation`; at 0 the
    network is told nothing. accumulate: parts of the batch.
    """

    def draw(params: Params, batch: Batch, state: TrainState) -> Samples:
        keys = rng.for_samples(rng.at_step(rng.stream(seed, "train"), state.step), jnp.arange(len(batch["image"])))
        t, factor = times.draw(model.process(params), rng.child(keys, 2), state.times)
        return Samples(batch, keys, t, factor)

    def loss(params: Params, samples: Samples, dropout: Any) -> Loss:
        batch, keys, t, factor = samples
        image = varied(batch["image"], keys, flip, crop)
        x_0 = levels.dequantise(image, rng.child(keys, 0))
        condition = _condition(batch, rng.child(keys, 3), label_drop)
        if augment:
            x_0, told = augmentation.augment(x_0, rng.child(keys, 5), augment)
            condition = {**(condition or {}), "augment": told}
        on_bound = _followed(params, "ends") if model.sde.learned else params
        denoiser = model.denoiser(on_bound, train=True, rng=dropout)
        return objective(denoiser, weighting, x_0, condition, rng.child(keys, 1), t, factor)

    def shape_loss(params: Params, t: Time, at_time: PerSample) -> Float[Array, ""]:
        process = model.process(_followed(params, "shape"))
        assert isinstance(process, SDE)  # only affine processes are learned
        return schedule_loss(process, t, at_time)

    def project(params: Params) -> Params:
        return {**params, "network": model.project(params["network"])}

    task = Task(
        draw=draw,
        loss=loss,
        dropout=lambda step: rng.at_step(rng.stream(seed, "dropout"), step),
        remember=lambda params, state, t, at_time: times.distribution.update(state, model.process(params), t, at_time),
        whole=shape_loss if model.sde.learned else None,
    )
    return make_update(task, optimiser, profiles, accumulate, project)


def several(
    step: Callable[[TrainState, Batch], TrainState],
) -> Callable[[TrainState, tuple[Batch, ...]], TrainState]:
    """A step on each of the batches, in turn. To be compiled, once for each number of them."""

    def steps(state: TrainState, batches: tuple[Batch, ...]) -> TrainState:
        if len(batches) == 1:
            return step(state, batches[0])
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return jax.lax.scan(lambda state, batch: (step(state, batch), None), state, stacked)[0]

    return steps


class Samples(NamedTuple):
    """A batch with what is drawn for each of its samples. factor: of the times."""

    batch: Batch
    keys: Keys
    t: Time
    factor: PerSample


class Task(NamedTuple):
    """What a step descends: the mean of `loss`, and `whole`.

    draw(params, batch, state): before the gradient. loss(params, samples, dropout): of each sample. dropout(step): its
    key. remember(params, times' state, t, loss at each t): the times' next state. whole(params, t, loss at each t): a
    term that is no mean over the samples.
    """

    draw: Callable[[Params, Batch, TrainState], Samples]
    loss: Callable[[Params, Samples, Any], Loss]
    dropout: Callable[[Any], Any]
    remember: Callable[[Params, Any, Time, PerSample], Any]
    whole: Callable[[Params, Time, PerSample], Float[Array, ""]] | None = None


def make_update(
    task: Task,
    optimiser: optax.GradientTransformation,
    profiles: Sequence[ema.Profile],
    accumulate: int,
    project: Callable[[Params], Params] = lambda params: params,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step that descends `task`, in `accumulate` parts. project: moves the parameters after each update."""

    def step(state: TrainState, batch: Batch) -> TrainState:
        samples = task.draw(state.params, batch, state)
        dropout = task.dropout(state.step)
        gradient, loss, at_time = _gradient(task.loss, state.params, samples, dropout, accumulate)
        if task.whole is not None:
            gradient = jax.tree.map(jnp.add, gradient, jax.grad(task.whole)(state.params, samples.t, at_time))
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        params = project(optax.apply_updates(state.params, updates))
        done = state.step + 1
        return TrainState(
            step=done,
            params=params,
            ema=ema.update(state.ema, evaluated(optimiser_state, params), profiles, done),
            optimiser=optimiser_state,
            times=task.remember(state.params, state.times, samples.t, at_time),
            window=state.window.add(done, loss, optax.tree.norm(gradient)),
        )

    return step


def _gradient(
    loss: Callable[[Params, Samples, Any], Loss], params: Params, samples: Samples, dropout: Any, accumulate: int
) -> tuple[Params, Float[Array, ""], PerSample]:
    """(gradient of the mean loss, the mean loss, the loss at each t), summed over the parts in float32."""

    def mean(params: Params, samples: Samples, dropout: Any) -> tuple[Float[Array, ""], PerSample]:
        each = loss(params, samples, dropout)
        return jnp.mean(each.total), each.at_time

    descend = jax.value_and_grad(mean, has_aux=True)
    if accumulate == 1:
        (value, at_time), gradient = descend(params, samples, dropout)
        return gradient, value, at_time
    # A part is every so-manieth sample and not a stretch of them, so that each device has its share of every part.
    parts = jax.tree.map(lambda leaf: jnp.swapaxes(leaf.reshape(-1, accumulate, *leaf.shape[1:]), 0, 1), samples)

    def add(total: tuple[Any, Params], part: tuple[Any, Samples]) -> tuple[tuple[Any, Params], PerSample]:
        number, samples = part
        (value, at_time), gradient = descend(params, samples, rng.at_step(dropout, number))
        return jax.tree.map(jnp.add, total, (value, gradient)), at_time

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, at_time = jax.lax.scan(add, start, (jnp.arange(accumulate), parts))
    value, gradient = jax.tree.map(lambda leaf: leaf / accumulate, total)
    return gradient, value, jnp.swapaxes(at_time, 0, 1).reshape(-1)


def _followed(params: Params, part: str) -> Params:
    """The parameters with the gradient in one part of the learned process, and not in the other."""
    process = params["process"]
    return {**params, "process": {**jax.lax.stop_gradient(process), part: process[part]}}


def varied(
    image: Integer[Array, "batch *space channels"], keys: Keys, flip: bool, crop: int
) -> Integer[Array, "batch *space channels"]:
    """The images `mirrored` and `cropped`, as far as is asked for."""
    image = mirrored(image, rng.child(keys, 4)) if flip else image
    return cropped(image, rng.child(keys, 6), crop) if crop else image


def cropped(
    image: Integer[Array, "batch height width channels"], keys: Keys, margin: int
) -> Integer[Array, "batch height width channels"]:
    """Of each image with `margin` more pixels on every side, by reflection, a part of the image's own size: each of
    the (2 margin + 1)² with equal probability."""
    padded = jnp.pad(image, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    first = jnp.floor(rng.uniform(keys, (2,)) * (2 * margin + 1)).astype(jnp.int32)
    part = lambda one, at: jax.lax.dynamic_slice(one, (at[0], at[1], 0), image.shape[1:])
    return jax.vmap(part)(padded, first)


def mirrored(
    image: Integer[Array, "batch *space width channels"], keys: Keys
) -> Integer[Array, "batch *space width channels"]:
    """Each image as it is, or with equal probability its left and right exchanged."""
    exchanged = rng.uniform(keys, (1,) * (image.ndim - 1)) < 0.5
    return jnp.where(exchanged, jnp.flip(image, axis=-2), image)


def _condition(batch: Batch, keys: Keys, label_drop: float) -> Condition:
    """`{"label": …}` of a batch with labels, `NO_LABEL` where it is hidden, for classifier-free guidance; else None."""
    if "label" not in batch:
        return None
    hidden = rng.uniform(keys) < label_drop
    return {"label": jnp.where(hidden, NO_LABEL, batch["label"])}
