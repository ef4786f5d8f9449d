"""Training of a noise-conditional classifier: its settings, and its step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from score_sde import rng
from score_sde.data.levels import Levels
from score_sde.data.source import Batch
from score_sde.denoiser import NOISE_CONDITIONS
from score_sde.errors import Checks
from score_sde.losses import Loss, Times
from score_sde.losses.classification import ClassifierModel, classify
from score_sde.training import ema
from score_sde.training.duration import Duration
from score_sde.training.state import TrainState
from score_sde.training.step import Samples, Task, make_update, varied
from score_sde.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Settings beside those of the classifier itself, by default guided-diffusion's for ImageNet-128.

    noise_condition: what the classifier is told of t, a row of `NOISE_CONDITIONS`. The optimiser is AdamW with a
    constant rate after the warm-up; all else is as for the score network, in `optimiser`, `training` and `times`.
    """

    noise_condition: str = "log_sigma"
    batch_size: int = 256
    duration: Duration = Duration(300_000, "steps")
    learning_rate: float = 3e-4
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("noise_condition", self.noise_condition, NOISE_CONDITIONS)
            check.that(1 <= self.batch_size <= 10**6, f"batch_size must lie in [1, 1e6], not {self.batch_size}")
            check.that(self.duration.amount > 0, f"duration must be more than 0, not '{self.duration}'")
            check.that(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
            check.that(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}")

    def apply(self, network: Any) -> "ClassifierPlan":
        """Training of the classifier with these settings of its own."""
        return ClassifierPlan(network, self)


@dataclasses.dataclass(frozen=True)
class ClassifierPlan:
    """A classifier to be trained. network: its settings, a row of `models.CLASSIFIERS`."""

    network: Any
    training: ClassifierTraining


def make_classifier_step(
    *,
    model: ClassifierModel,
    times: Times,
    optimiser: optax.GradientTransformation,
    levels: Levels,
    profiles: Sequence[ema.Profile],
    seed: int,
    flip: bool = False,
    crop: int = 0,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step to be compiled, on batches with labels; see `step.make_step`."""

    def draw(params: Params, batch: Batch, state: TrainState) -> Samples:
        keys = rng.for_samples(rng.at_step(rng.stream(seed, "classifier"), state.step), jnp.arange(len(batch["image"])))
        return Samples(batch, keys, *times.draw(model.sde, rng.child(keys, 2), state.times))

    def loss(params: Params, samples: Samples, dropout: Any) -> Loss:
        batch, keys, t, factor = samples
        image = varied(batch["image"], keys, flip, crop)
        x_0 = levels.dequantise(image, rng.child(keys, 0))
        logits = functools.partial(model.logits, params, train=True, rng=dropout)
        at_time = classify(logits, model.sde, x_0, batch["label"], rng.child(keys, 1), t).loss
        return Loss(factor * at_time, at_time)

    task = Task(
        draw=draw,
        loss=loss,
        dropout=lambda step: rng.at_step(rng.stream(seed, "classifier dropout"), step),
        remember=lambda _, state, t, at_time: times.distribution.update(state, model.sde, t, at_time),
    )
    return make_update(task, optimiser, profiles, accumulate)
