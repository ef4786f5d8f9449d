r"""Training of a noise-conditional classifier p(y | x_t), whose gradient ∇ log p(y | x_t) guides a sampler to y.

    L = E_{t, (x_0, y), ε}  −log p(y | x_t),   x_t = α_t x_0 + σ_t ε,   p(y | x_t) = softmax of the logits

with t drawn as configured. The minimiser is the data's own p(y | x_t), at every t.

Source: Song et al. 2021, sec. 5 and appendix I.1; Dhariwal & Nichol 2021, sec. 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from score_sde import rng
from score_sde.denoiser import INPUT_SCALES, NOISE_CONDITIONS, Parameterisation
from score_sde.sde import SDE, expand
from score_sde.typing import Data, Keys, Params, PerSample, Time

Labels = Int[Array, "batch"]
Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierModel:
    """A process, a classifier and what it is given of x_t and t, as one function of the trained parameters.

    apply: `models.Classifier.apply`. parameterisation: its noise_condition and input_scale; it predicts no part of x_t.
    """

    sde: SDE
    parameterisation: Parameterisation
    apply: Callable[..., Logits]

    def logits(self, params: Params, x_t: Data, t: Time, *, train: bool = False, rng: Any = None) -> Logits:
        """log p(y | x_t) of each label y, up to a constant of each x_t."""
        given = self.parameterisation
        scale = INPUT_SCALES[given.input_scale](self.sde, t, given.sigma_data)
        noise_condition = NOISE_CONDITIONS[given.noise_condition](self.sde, t)
        return self.apply(params, expand(scale, x_t) * x_t, noise_condition, train=train, rng=rng)


class Classified(NamedTuple):
    """Of each sample. loss: −log p(y | x_t) in nats. correct: whether y is the likeliest label."""

    loss: PerSample
    correct: Bool[Array, "batch"]


def classify(
    logits: Callable[[Data, Time], Logits], sde: SDE, x_0: Data, label: Labels, keys: Keys, t: Time
) -> Classified:
    """How well the labels of x_0 are told from x_t, for one draw of ε."""
    mean, std = sde.marginal(x_0, t)
    found = logits(mean + std * rng.normal(keys, x_0.shape[1:]), t)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(found), label[:, None], axis=1)[:, 0]
    return Classified(-chosen, jnp.argmax(found, axis=1) == label)
