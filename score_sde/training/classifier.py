"""Training of a noise-conditional classifier: its settings, and its step."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde import rng
from score_sde.data.levels import Levels
from score_sde.data.source import Batch
from score_sde.denoiser import NOISE_CONDITIONS
from score_sde.errors import Checks
from score_sde.losses import Times
from score_sde.losses.classification import ClassifierModel, classify
from score_sde.training.duration import Duration
from score_sde.training.state import TrainState
from score_sde.training.step import make_update, mirrored
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
    half_lives: Sequence[float],
    seed: int,
    flip: bool = False,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step to be compiled, on batches with labels; see `step.make_step`."""

    def loss_of(params: Params, batch: Batch, state: TrainState) -> Any:
        stream = lambda name: rng.at_step(rng.stream(seed, name), state.step)
        keys = rng.for_samples(stream("classifier"), jnp.arange(len(batch["image"])))
        image = mirrored(batch["image"], rng.child(keys, 4)) if flip else batch["image"]
        x_0 = levels.dequantise(image, rng.child(keys, 0))
        t, factor = times.draw(model.sde, rng.child(keys, 2), state.times)
        logits = functools.partial(model.logits, params, train=True, rng=stream("classifier dropout"))
        loss = classify(logits, model.sde, x_0, batch["label"], rng.child(keys, 1), t).loss
        remembered = times.distribution.update(state.times, model.sde, t, jax.lax.stop_gradient(loss))
        mean = jnp.mean(factor * loss)
        return mean, (mean, remembered)

    return make_update(loss_of, optimiser, half_lives)
