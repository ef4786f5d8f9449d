r"""Gaussian mixtures, of which everything is known under any affine process.

A mixture Σ_k w_k N(μ_k, diag v_k) stays one along x_t = α x_0 + σ ε: the weights stay, and each component becomes
N(α μ_k, α² v_k + σ²). So its density, posterior mean E[x_0 | x_t] and, in one dimension, its distribution function
are closed forms at every t. A Gaussian is a mixture of one. In one dimension the probability-flow ODE keeps the
order of the points and hence their quantiles: its solution is x_s = F_s⁻¹(F_t(x_t)), without any integration.

Everything follows the dtype of the state that is asked for; NumPy functions are in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float

from score_sde.denoiser import Denoiser
from score_sde.oracles.base import Oracle
from score_sde.sde import SDE, expand


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture(Oracle):
    """weights `(components,)`, means and stds `(components, *shape)`; stds may be 0 for a point mass."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.means.shape[1:]

    def denoiser(self, sde: SDE) -> Denoiser:
        """The exact posterior mean, as a Denoiser that predicts x_0."""
        return Denoiser(sde=sde, function=lambda x_t, t, condition: self.posterior_mean(sde, x_t, t))

    def posterior_mean(self, sde: SDE, x_t, t):
        """E[x_0 | x_t]: each component's, weighted by its responsibility."""
        alpha, sigma = expand(sde.alpha(t), x_t)[None], expand(sde.sigma(t), x_t)[None]
        means, variances = self._array(self.means, x_t), self._array(self.stds, x_t) ** 2
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        each = means + gain * (x_t[None] - alpha * means)
        log_joint = self._log_joint(x_t, sde.alpha(t), sde.sigma(t))
        joint = jnp.exp(log_joint - _over_components(jnp.maximum, jnp.max, log_joint)[None])
        responsibility = joint / _over_components(jnp.add, jnp.sum, joint)[None]
        weighted = responsibility.reshape(responsibility.shape + (1,) * len(self.shape)) * each
        return _over_components(jnp.add, jnp.sum, weighted)

    def log_prob(self, sde: SDE, x, t):
        """log p_t(x) in nats, `(batch,)`; t `(batch,)`. t = T is the exact terminal law, no prior in its place."""
        return jax.nn.logsumexp(self._log_joint(x, sde.alpha(t), sde.sigma(t)), axis=0)

    def data_log_prob(self, x):
        """log p_0(x) of the data themselves, in nats, `(batch,)`."""
        one = jnp.ones(x.shape[0], x.dtype)
        return jax.nn.logsumexp(self._log_joint(x, one, 0 * one), axis=0)

    def marginal(self, sde: SDE, t: float) -> "Mixture":
        """The law of x_t, in float64."""
        with jax.enable_x64(True):
            time = jnp.asarray(t, jnp.float64)
            alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
        return Mixture(self.weights, alpha * self.means, np.sqrt((alpha * self.stds) ** 2 + sigma**2))

    def sample(self, count: int, seed: int) -> Float[np.ndarray, "count *shape"]:
        generator = np.random.default_rng(seed)
        component = generator.choice(len(self.weights), count, p=self.weights)
        return self.means[component] + self.stds[component] * generator.normal(size=(count, *self.shape))

    def mean(self) -> Float[np.ndarray, "*shape"]:
        return np.tensordot(self.weights, self.means, 1)

    def covariance(self) -> Float[np.ndarray, "values values"]:
        means = (self.means - self.mean()).reshape(len(self.weights), -1)
        within = np.tensordot(self.weights, self.stds.reshape(len(self.weights), -1) ** 2, 1)
        return np.einsum("k,ki,kj->ij", self.weights, means, means) + np.diag(within)

    def variance(self) -> np.ndarray:
        """Of each value, `shape`."""
        return np.tensordot(self.weights, self.stds**2 + self.means**2, 1) - self.mean() ** 2

    def cdf(self, x: np.ndarray) -> np.ndarray:
        """F(x) of a mixture in one dimension, shape (1,)."""
        return (self.weights * scipy.special.ndtr((x[..., None] - self.means[:, 0]) / self.stds[:, 0])).sum(axis=-1)

    def flow(self, sde: SDE, x: np.ndarray, t: float, s: float) -> np.ndarray:
        """Where the probability-flow ODE takes points x `(batch,)` from t to s, in one dimension, to 1e-13."""
        start, end = self.marginal(sde, t), self.marginal(sde, s)
        reach = np.abs(end.means).max() + 30 * end.stds.max()
        return np.array(
            [
                scipy.optimize.brentq(lambda y, p=p: end.cdf(np.asarray(y)) - p, -reach, reach, xtol=1e-14, rtol=1e-14)
                for p in start.cdf(x)
            ]
        )

    def _log_joint(self, x, alpha, sigma):
        """log w_k + log N(x; α μ_k, α² v_k + σ²), `(components, batch)`: sums over components are of whole vectors."""
        alpha, sigma = expand(alpha, x)[None], expand(sigma, x)[None]
        variance = (alpha * self._array(self.stds, x)) ** 2 + sigma**2
        residual = x[None] - alpha * self._array(self.means, x)
        each = -0.5 * (residual**2 / variance + jnp.log(variance) + math.log(2 * math.pi))
        log_weights = jnp.asarray(np.log(self.weights), x.dtype)[:, None]
        return log_weights + each.reshape(*each.shape[:2], -1).sum(axis=2)

    @staticmethod
    def _array(value: np.ndarray, like):
        return jnp.asarray(value, like.dtype)[:, None]


FEW = 16


def _over_components(of_two: Callable[..., Array], of_all: Callable[..., Array], parts):
    """The parts `(components, …)` joined; few ones one by one, since XLA reduces so short an axis 20 times slower."""
    return functools.reduce(of_two, parts) if len(parts) <= FEW else of_all(parts, axis=0)


def gaussian(mean, std, shape: tuple[int, ...]) -> Mixture:
    """N(mean, diag std²), `mean` and `std` broadcast to `shape`."""
    full = lambda value: np.broadcast_to(np.asarray(value, np.float64), shape)[None]
    return Mixture(np.ones(1), full(mean), full(std))


def mixture(weights, means, stds, shape: tuple[int, ...]) -> Mixture:
    """Σ_k w_k N(μ_k, diag v_k); each μ_k and std_k broadcasts to `shape`."""
    full = lambda values: np.stack([np.broadcast_to(np.asarray(value, np.float64), shape) for value in values])
    return Mixture(np.asarray(weights, np.float64), full(means), full(stds))


def ring(modes: int = 8, radius: float = 0.8, std: float = 0.04) -> Mixture:
    """Narrow modes on a circle in the plane, of unequal weights, the last three times the first."""
    angle = 2 * math.pi * np.arange(modes) / modes
    weights = np.linspace(1, 3, modes)
    centres = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Mixture(weights / weights.sum(), centres, np.full((modes, 2), std))


def checkerboard(squares: int = 4, points: int = 6) -> Mixture:
    """Every other square of a board on [−1, 1]², each of points × points modes as wide as they are apart."""
    spacing = 2 / (squares * points)
    centre = -1 + spacing * (0.5 + np.arange(squares * points))
    x, y = np.meshgrid(centre, centre, indexing="ij")
    black = (np.arange(squares * points)[:, None] // points + np.arange(squares * points)[None] // points) % 2 == 0
    means = np.stack([x[black], y[black]], axis=1)
    return Mixture(np.full(len(means), 1 / len(means)), means, np.full_like(means, 0.5 * spacing))


def swiss_roll(modes: int = 200, turns: float = 1.5, std: float = 0.03) -> Mixture:
    """Modes along a spiral in [−1, 1]², evenly spread on its length."""
    fine = np.linspace(0.5 * math.pi, (0.5 + 2 * turns) * math.pi, 20_000)
    curve = np.stack([fine * np.cos(fine), fine * np.sin(fine)], axis=1) / fine[-1]
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], modes)
    means = np.stack([np.interp(even, length, curve[:, axis]) for axis in (0, 1)], axis=1)
    return Mixture(np.full(modes, 1 / modes), 0.9 * means, np.full((modes, 2), std))
