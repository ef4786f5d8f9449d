"""What tests of training use of every process: times between which a Monte-Carlo estimate is good, integrals over
them, and the closed forms of Gaussian data there.

For x_0 ~ N(m, s² I) the exact ε̂ is σ (x_t − α m)/(α² s² + σ²), and ε − ε̂ is N(0, v I), v = α² s²/(α² s² + σ²),
whatever x_t. So the mean over D dimensions of its square is v χ²_D/D: mean v, mean square v² (1 + 2/D).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.sde import PROCESSES

MEAN, STD, SHAPE = 0.4, 0.7, (2, 2)
SIZE = 4

# The rate −d log_snr/dt grows as 1/t towards 0, and as 1/(1 − t) where a process ends in noise at 1: weighted by it or
# its square, an average over uniform times needs more draws than a test can have, unless the ends are kept away.
ENDS = {
    "edm": {"t_min": 0.05, "T": 5.0},
    "cosine": {"t_min": 0.02, "T": 0.95},
    "rectified_flow": {"t_min": 0.02, "T": 0.95},
    "trigonometric": {"t_min": 0.02, "T": 0.95},
    "log_snr": {"t_min": 0.02, "T": 0.95},
    "vdm": {"features": 8},
}


@functools.cache
def process(name: str):
    """The process with its ends as in `ENDS`; a learned one at parameters far from linear."""
    sde = PROCESSES[name](**ENDS.get(name, {"t_min": 0.02}))
    return sde.bind(bent(sde)) if sde.learned else sde


def bent(sde, size: float = 0.5):
    """Parameters of a learned schedule whose log_snr is steep in the first half and flat in the second."""
    params = sde.init()
    weight = np.where(np.linspace(0, 1, sde.features) < 0.5, size, 0.05 * size)
    bend = jnp.asarray(np.log(np.expm1(weight)), jnp.float32)
    return {"ends": params["ends"], "shape": {**params["shape"], "weight": bend}}


class Nodes(NamedTuple):
    """Gauss's rule on [t_min, T], in float64. weights: of the mean over uniform t. rate: −d log_snr/dt."""

    weights: np.ndarray
    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    rate: np.ndarray

    @property
    def snr(self) -> np.ndarray:
        return (self.alpha / self.sigma) ** 2

    @property
    def error(self) -> np.ndarray:
        """v, see the module."""
        signal = (self.alpha * STD) ** 2
        return signal / (signal + self.sigma**2)


@functools.cache
def nodes(sde) -> Nodes:
    """In panels that crowd towards t_min."""
    positions, weights = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([[0.0], np.geomspace(1e-5, 1, 40)])
    width, start = np.diff(edges)[:, None], edges[:-1, None]
    share = (start + width * (positions + 1) / 2).reshape(-1)
    t = sde.t_min + (sde.T - sde.t_min) * share
    return at(sde, t, (width * weights / 2).reshape(-1))


def at(sde, t: np.ndarray, weights: np.ndarray | None = None) -> Nodes:
    """The same of other times. The rate is the derivative of the logarithms of α and σ, not of `log_snr`."""

    def levels(t):
        log_ratio = lambda t: 2 * (jnp.log(sde.alpha(t)) - jnp.log(sde.sigma(t)))
        return sde.alpha(t), sde.sigma(t), -jax.jvp(log_ratio, (t,), (jnp.ones_like(t),))[1]

    with jax.enable_x64(True):
        values = [np.asarray(value) for value in jax.jit(levels)(jnp.asarray(t, jnp.float64))]
    return Nodes(np.full(t.shape, 1 / t.size) if weights is None else weights, t, *values)


def exact_epsilon(sde, x, t):
    """ε̂ of the data."""
    alpha, sigma = (value.reshape(-1, 1, 1) for value in (sde.alpha(t), sde.sigma(t)))
    return sigma * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


def close(values: np.ndarray, expected: float) -> bool:
    """Whether the mean of values is `expected` within 5 standard errors."""
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) < 5 * values.std() / np.sqrt(len(values))


class PaperWeighting(NamedTuple):
    """A weighting as its paper has it. of: the quantity whose squared error it weights."""

    of: str
    weight: object


def snr_derivative(at: Nodes) -> np.ndarray:
    """−SNR'(t)."""
    return at.rate * at.snr


# With the settings of `SETTINGS`. `length` is T − t_min: the papers' loss is an integral over t, ours a mean.
SETTINGS = {
    "edm": {"sigma_data": 0.6},
    "min_snr": {"gamma": 3.0},
    "soft_min_snr": {"gamma": 2.5},
    "p2": {"gamma": 0.8, "k": 1.5},
    "sigmoid": {"bias": -1.0},
}
PAPERS = {
    "sigma2": PaperWeighting("score", lambda at, length: at.sigma**2),
    "likelihood": PaperWeighting("score", lambda at, length: at.sigma**2 * at.rate),
    "vlb": PaperWeighting("x_0", lambda at, length: length * snr_derivative(at) / 2),
    "v": PaperWeighting("v", lambda at, length: np.ones_like(at.snr)),
    "velocity": PaperWeighting("velocity", lambda at, length: np.ones_like(at.snr)),
    "edm": PaperWeighting(
        "x_0", lambda at, length: ((at.sigma / at.alpha) ** 2 + 0.6**2) / (at.sigma / at.alpha * 0.6) ** 2
    ),
    "min_snr": PaperWeighting("x_0", lambda at, length: np.minimum(at.snr, 3.0)),
    "soft_min_snr": PaperWeighting("x_0", lambda at, length: at.snr * 2.5 / (at.snr + 2.5)),
    "p2": PaperWeighting("epsilon", lambda at, length: 1 / (1.5 + at.snr) ** 0.8),
    # Hoogeboom et al. 2024: weight = −½ dlog_snr/dt · e^b · sigmoid(log_snr − b) on x_0.
    "sigmoid": PaperWeighting(
        "x_0", lambda at, length: length * 0.5 * at.rate * np.exp(-1.0) / (1 + np.exp(-1.0) / at.snr)
    ),
}
# The squared error of each quantity where that of ε is 1, at the same x_t.
OF_EPSILON = {
    "epsilon": lambda at: np.ones_like(at.snr),
    "x_0": lambda at: 1 / at.snr,
    "score": lambda at: 1 / at.sigma**2,
    "v": lambda at: (at.alpha + at.sigma**2 / at.alpha) ** 2,  # Δx_0 = −σ/α Δε, v = α ε − σ x_0
    "velocity": lambda at: (at.sigma * at.rate / 2) ** 2,  # (σ' − α' σ/α) Δε, and −log_snr'/2 = σ'/σ − α'/α
}


def paper_weight(name: str, at: Nodes, length: float) -> np.ndarray:
    """The weight on ε that the paper's is."""
    paper = PAPERS[name]
    return paper.weight(at, length) * OF_EPSILON[paper.of](at)
