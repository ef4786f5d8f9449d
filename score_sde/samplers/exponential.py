r"""Exponential integrators in λ: what DPM-Solver, DEIS, UniPC and SA-Solver are made of.

The reverse process with stochasticity η (η = 0 the probability-flow ODE, η = 1 the reverse SDE), solved for the part
that is linear in x, is from t to s, with h = λ_s − λ_t > 0 and P the data D or the noise ε̂,

    data    x_s = (σ_s/σ_t) e^{−η² h} x_t + α_s ∫ (1 + η²) e^{−(1 + η²)(λ_s − λ)} D_λ dλ + σ_s √(1 − e^{−2η² h}) z
    noise   x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s − λ} ε̂_λ dλ                                             (η = 0)

with the integrals from λ_t to λ_s. With a polynomial in the place of P they are sums Σ_j w_j P_j, whose weights are
computed by Gauss's rule here, to the last digits of float64, for any nodes; with nothing but P_t the weight is the
closed form α_s (1 − e^{−(1 + η²) h}) or −σ_s (e^h − 1).

Source: Lu et al., "DPM-Solver", 2022, eq. 3.4, and "DPM-Solver++", 2022, eq. 9; with η Xue et al., "SA-Solver", 2023,
prop. 4.2 (η² = τ²).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from score_sde.samplers.linear import Tape, Vector, combine
from score_sde.samplers.schedule import Level

PREDICTIONS = ("data", "noise")
GAUSS = np.polynomial.legendre.leggauss(24)  # on [−1, 1]; exact to 1e-14 for |(1 + η²) h| up to 20


class Node(NamedTuple):
    """A prediction that was made: where, in the variable of the polynomial (λ for most), and what."""

    position: float
    prediction: Vector


def lagrange(nodes: list[float], points: Float[np.ndarray, "points"]) -> Float[np.ndarray, "nodes points"]:
    """The polynomials that are 1 at one node and 0 at the others, at some points."""
    rows = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        rows.append(np.prod([(points - other) / (node - other) for other in others], axis=0) * np.ones_like(points))
    return np.stack(rows)


def decay(prediction: str, t: Level, s: Level, eta: float = 0.0) -> float:
    """The factor of x_t in x_s."""
    if prediction == "noise":
        return s.alpha / t.alpha
    return s.sigma / t.sigma * (math.exp(-(eta**2) * (s.lambda_t - t.lambda_t)) if eta else 1.0)


def whole(prediction: str, t: Level, s: Level, eta: float = 0.0) -> float:
    """The weight of a prediction that is the same all along the step."""
    h = s.lambda_t - t.lambda_t
    return -s.sigma * math.expm1(h) if prediction == "noise" else -s.alpha * math.expm1(-(1 + eta**2) * h)


def weights(prediction: str, t: Level, s: Level, nodes: list[float], eta: float = 0.0) -> list[float]:
    """Of the polynomial in λ through predictions at these λ."""
    if len(nodes) == 1:
        return [whole(prediction, t, s, eta)]
    abscissae, gauss = GAUSS
    h = s.lambda_t - t.lambda_t
    points = t.lambda_t + 0.5 * h * (1 + abscissae)
    left = s.lambda_t - points
    kernel = -s.sigma * np.exp(left) if prediction == "noise" else s.alpha * (1 + eta**2) * np.exp(-(1 + eta**2) * left)
    return list(lagrange(nodes, points) @ (0.5 * h * gauss * kernel))


def spread(t: Level, s: Level, eta: float) -> float:
    """The standard deviation of the step's noise."""
    return s.sigma * math.sqrt(-math.expm1(-2 * eta**2 * (s.lambda_t - t.lambda_t)))


def predict(prediction: str, x: Vector, t: Level, s: Level, nodes: list[Node], eta: float = 0.0) -> Vector:
    """The mean of x_s with the polynomial through the nodes in the place of the prediction."""
    factors = weights(prediction, t, s, [node.position for node in nodes], eta)
    return decay(prediction, t, s, eta) * x + combine(factors, [node.prediction for node in nodes])


def choose(prediction: str, both: tuple[Vector, Vector]) -> Vector:
    """D or ε̂ of an evaluation."""
    return both[PREDICTIONS.index(prediction)]


def evaluate(tape: Tape, prediction: str, x: Vector, level: Level) -> Node:
    """An evaluation at a level, as a node in λ."""
    return Node(level.lambda_t, choose(prediction, tape.evaluate(x, level)))


def single_step(
    tape: Tape, prediction: str, x: Vector, t: Level, s: Level, inside: list[Level], first: Node, form: str = "midpoint"
) -> Vector:
    """A step of one of the DPM-Solvers, of order 1 + len(inside), evaluated at t (`first`) and at the levels inside.

    The levels inside lie at shares r of the step in λ, any for order 2, 1/3 and 2/3 for order 3. form: at order 2, how
    the slope is weighted: "midpoint" as if the prediction were that of the middle, "taylor" by its exact integral.
    """
    if not inside:
        return predict(prediction, x, t, s, [first])
    nodes = [first]
    for level in inside:  # the prediction at each by the polynomial through those before it
        point = predict(prediction, x, t, level, nodes)
        nodes.append(evaluate(tape, prediction, point, level))
    last = inside[-1]
    share = (last.lambda_t - t.lambda_t) / (s.lambda_t - t.lambda_t)
    if len(inside) == 1 and form == "midpoint":
        weight = whole(prediction, t, s)
        return decay(prediction, t, s) * x + combine(
            [weight * (1 - 0.5 / share), weight * 0.5 / share], [first.prediction, nodes[-1].prediction]
        )
    return predict(prediction, x, t, s, [first, nodes[-1]])
