"""One training step, a pure function of the state and a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from score_sde import rng
from score_sde.data.levels import Levels
from score_sde.data.source import Batch
from score_sde.denoiser import Parameterisation
from score_sde.losses import Objective
from score_sde.sde import SDE
from score_sde.training import ema
from score_sde.training.state import TrainState
from score_sde.typing import NetworkApply


def make_step(
    *,
    sde: SDE,
    parameterisation: Parameterisation,
    apply: NetworkApply,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    levels: Levels,
    ema_decay: float,
    seed: int,
) -> Callable[[TrainState, Batch], TrainState]:
    """The step to be compiled: dequantise, loss and gradient, update, average."""

    def mean_loss(params, batch, step):
        keys = rng.for_samples(rng.at_step(rng.stream(seed, "train"), step), jnp.arange(len(batch["image"])))
        dropout = rng.at_step(rng.stream(seed, "dropout"), step)
        x_0 = levels.dequantise(batch["image"], rng.child(keys, 0))
        denoiser = parameterisation.denoiser(sde, apply, params, train=True, rng=dropout)
        return jnp.mean(objective(denoiser, x_0, None, rng.child(keys, 1)))

    def step(state: TrainState, batch: Batch) -> TrainState:
        loss, gradient = jax.value_and_grad(mean_loss)(state.params, batch, state.step)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        return TrainState(
            step=done,
            params=params,
            ema=ema.update(state.ema, params, ema_decay, done),
            optimiser=optimiser_state,
            window=state.window.add(done, loss, optax.tree.norm(gradient)),
        )

    return step
