r"""Denoisers: from a network's output to D(x_t, t) = E[x_0 | x_t], score, ε, v and velocity.

Every prediction P is a combination of the data and the noise, and so is the state:

    P = a x_0 + b ε,      x_t = α x_0 + σ ε

    prediction   a                      b
    x_0          1                      0
    epsilon      0                      1
    v            −σ                     α                       (Salimans & Ho 2022)
    score        0                      −1/σ
    velocity     dα/dt                  dσ/dt                   (Lipman et al. 2023)
    edm          σ̄/(σ_d √(σ̄²+σ_d²))   −σ_d/√(σ̄²+σ_d²)        (F of Karras et al. 2022, σ_d = sigma_data)

Knowing x_t and one prediction P₁ = (a₁, b₁), any other P₂ = (a₂, b₂) is

    P₂ = c_x x_t + c_P P₁,   Δ = α b₁ − σ a₁,   c_P = (α b₂ − σ a₂)/Δ,   c_x = (a₂ b₁ − b₂ a₁)/Δ

which is exact, and costs no cancellation where P₁ and P₂ differ by a factor (ε and the score).
Conditional expectations obey the same equations, being linear.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.errors import Checks
from score_sde.sde import SDE, expand
from score_sde.typing import Condition, Data, NetworkApply, Params, PerSample, Time

Coefficients = tuple[PerSample, PerSample]


def _edm(sde: SDE, t: Time, sigma_data: float) -> Coefficients:
    sigma_bar = sde.sigma_bar(t)
    norm = jnp.sqrt(sigma_bar**2 + sigma_data**2)
    return sigma_bar / (sigma_data * norm), -sigma_data / norm


PREDICTIONS: dict[str, Callable[[SDE, Time, float], Coefficients]] = {
    "x_0": lambda sde, t, sigma_data: (jnp.ones_like(t), jnp.zeros_like(t)),
    "epsilon": lambda sde, t, sigma_data: (jnp.zeros_like(t), jnp.ones_like(t)),
    "v": lambda sde, t, sigma_data: (-sde.sigma(t), sde.alpha(t)),
    "score": lambda sde, t, sigma_data: (jnp.zeros_like(t), -1 / sde.sigma(t)),
    "velocity": lambda sde, t, sigma_data: (sde.alpha_derivative(t), sde.sigma_derivative(t)),
    "edm": _edm,
}

NOISE_CONDITIONS: dict[str, Callable[[SDE, Time], PerSample]] = {
    "time": lambda sde, t: 999 * t / sde.T,  # score_sde's label for VP and sub-VP; suits a positional embedding
    "log_sigma": lambda sde, t: jnp.log(sde.sigma_bar(t)),  # score_sde's for VE; suits a Fourier embedding
}

INPUT_SCALES: dict[str, Callable[[SDE, Time, float], PerSample]] = {
    "none": lambda sde, t, sigma_data: jnp.ones_like(t),
    "unit_variance": lambda sde, t, sigma_data: jax.lax.rsqrt((sigma_data * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A process together with a function that predicts something of x_0 or ε from x_t.

    function(x_t, t, condition) -> `(batch, *shape)`: the prediction named by `prediction`. An exact posterior
    mean is a Denoiser with prediction "x_0"; guidance maps a Denoiser to a Denoiser.
    """

    sde: SDE
    function: Callable[[Data, Time, Condition], Data]
    prediction: str = "x_0"
    sigma_data: float = 1.0

    def __call__(self, x_t: Data, t: Time, condition: Condition = None) -> Data:
        """D(x_t, t, condition), the estimate of E[x_0 | x_t]."""
        return self.predict("x_0", x_t, t, condition)

    def score(self, x_t: Data, t: Time, condition: Condition = None) -> Data:
        """(α_t D − x_t) / σ_t², the estimate of ∇ log p_t(x_t)."""
        return self.predict("score", x_t, t, condition)

    def epsilon(self, x_t: Data, t: Time, condition: Condition = None) -> Data:
        """(x_t − α_t D) / σ_t, the estimate of the noise."""
        return self.predict("epsilon", x_t, t, condition)

    def velocity(self, x_t: Data, t: Time, condition: Condition = None) -> Data:
        """dα/dt D + dσ/dt ε̂, the velocity of the probability-flow ODE."""
        return self.predict("velocity", x_t, t, condition)

    def predict(self, prediction: str, x_t: Data, t: Time, condition: Condition = None) -> Data:
        """Any row of `PREDICTIONS`, from one evaluation of `function`."""
        return self.convert(self.function(x_t, t, condition), self.prediction, prediction, x_t, t)

    def convert(self, value: Data, source: str, target: str, x_t: Data, t: Time) -> Data:
        """Prediction `target` from the value of prediction `source` at x_t. See the module."""
        if source == target:
            return value
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a_1, b_1 = PREDICTIONS[source](self.sde, t, self.sigma_data)
        a_2, b_2 = PREDICTIONS[target](self.sde, t, self.sigma_data)
        determinant = alpha * b_1 - sigma * a_1
        c_value = (alpha * b_2 - sigma * a_2) / determinant
        c_state = (a_2 * b_1 - b_2 * a_1) / determinant
        return expand(c_state, x_t) * x_t + expand(c_value, x_t) * value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameterisation:
    """How a network is used as a denoiser.

    prediction: what its output means, a row of `PREDICTIONS`. noise_condition: what it is told of t, a row of
    `NOISE_CONDITIONS`. input_scale: the factor on x_t, a row of `INPUT_SCALES`. sigma_data: the data's
    standard deviation, for "edm" and "unit_variance".
    """

    prediction: str = "epsilon"
    noise_condition: str = "time"
    input_scale: str = "none"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("prediction", self.prediction, PREDICTIONS)
            check.name("noise_condition", self.noise_condition, NOISE_CONDITIONS)
            check.name("input_scale", self.input_scale, INPUT_SCALES)
            check.that(self.sigma_data > 0, f"sigma_data must be positive, not {self.sigma_data}")

    def denoiser(
        self, sde: SDE, apply: NetworkApply, params: Params, *, train: bool = False, rng: Any = None
    ) -> Denoiser:
        """The denoiser that a network and its parameters make."""

        def function(x_t: Data, t: Time, condition: Condition) -> Data:
            scale = INPUT_SCALES[self.input_scale](sde, t, self.sigma_data)
            label = NOISE_CONDITIONS[self.noise_condition](sde, t)
            return apply(params, expand(scale, x_t) * x_t, label, condition, train=train, rng=rng)

        return Denoiser(sde=sde, function=function, prediction=self.prediction, sigma_data=self.sigma_data)
