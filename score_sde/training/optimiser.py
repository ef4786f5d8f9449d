r"""Optimisers, from optax: clipping, update rule, learning-rate schedule. To add one: its line in `OPTIMISERS`.

After a linear warm-up, the learning rate at step n is, r the highest and `decay` in steps,

    constant       r
    cosine         from r down to 0 at n = decay, as ½ (1 + cos)
    inverse_sqrt   r/√max(n/decay, 1), a factor on the warm-up also where that is longer       (Karras et al. 2024)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde.errors import Checks
from score_sde.training.duration import Duration

SCHEDULES = ("constant", "cosine", "inverse_sqrt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Settings. name: a row of `OPTIMISERS`.

    schedule: of the learning rate; see the module. `decay` counts from the start of training, and is apart from
    training.duration, so that training may be stopped early or extended without changing it.
    gradient_clip: largest global norm of the gradient, 0 for none. weight_decay: for "adamw", of `matrices` only.
    """

    name: str = "adam"
    learning_rate: float = 2e-4
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup: Duration = Duration(5000, "steps")
    schedule: str = "constant"
    decay: Duration = Duration(1_300_000, "steps")
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("name", self.name, OPTIMISERS)
            check.name("schedule", self.schedule, SCHEDULES)
            check.that(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
            check.that(0 <= self.beta_1 < 1, f"beta_1 must lie in [0, 1), not {self.beta_1}")
            check.that(0 <= self.beta_2 < 1, f"beta_2 must lie in [0, 1), not {self.beta_2}")
            check.that(self.epsilon > 0, f"epsilon must be positive, not {self.epsilon}")
            check.that(self.gradient_clip >= 0, f"gradient_clip must be at least 0, not {self.gradient_clip}")
            check.that(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}")
            check.that(
                self.name == "adamw" or not self.weight_decay,
                f"weight_decay={self.weight_decay} needs name 'adamw', not {self.name!r}",
            )

    def rate(self, warmup_steps: int, decay_steps: int) -> optax.Schedule:
        """The learning rate by step."""
        warmup = optax.linear_schedule(0.0, self.learning_rate, warmup_steps)
        if self.schedule == "inverse_sqrt":
            risen = warmup if warmup_steps else optax.constant_schedule(self.learning_rate)
            return lambda step: risen(step) / jnp.sqrt(jnp.maximum(step / max(1, decay_steps), 1.0))
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(self.learning_rate, max(1, decay_steps - warmup_steps))
        else:
            after = optax.constant_schedule(self.learning_rate)
        return optax.join_schedules([warmup, after], [warmup_steps])

    def build(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The gradient transformation at learning rate `rate`."""
        clip = optax.clip_by_global_norm(self.gradient_clip) if self.gradient_clip else optax.identity()
        return optax.chain(clip, OPTIMISERS[self.name](self, rate))


def matrices(params: Any) -> Any:
    """Which parameters decay: those of two axes or more, not scales, biases and fixed frequencies."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


OPTIMISERS: dict[str, Callable[[Optimiser, optax.Schedule], optax.GradientTransformation]] = {
    "adam": lambda o, rate: optax.adam(rate, b1=o.beta_1, b2=o.beta_2, eps=o.epsilon),
    "adamw": lambda o, rate: optax.adamw(
        rate, b1=o.beta_1, b2=o.beta_2, eps=o.epsilon, weight_decay=o.weight_decay, mask=matrices
    ),
}
