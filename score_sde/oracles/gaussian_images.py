r"""Gaussian images with the power spectrum of natural ones.

In the orthonormal cosine transform C (on rows and columns) pixels are independent, with variances

    v_k ∝ 1/(1 + |k|²),   scaled to a standard deviation `std` of the pixels on average

so that E[x_0 | x_t] = Cᵀ (α v/(α² v + σ²) ∘ C x_t) is linear. Its probability-flow ODE and every solver's output have
a Gaussian law whose covariance is known.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Float

from score_sde.denoiser import Denoiser
from score_sde.oracles.base import Oracle
from score_sde.sde import SDE, expand


@dataclasses.dataclass(frozen=True)
class GaussianImages(Oracle):
    """size: of a square image of one channel. std: of a pixel, on average over the image."""

    size: int = 16
    std: float = 0.5

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 1)

    @functools.cached_property
    def transform(self) -> Float[np.ndarray, "size size"]:
        """C in one direction."""
        return scipy.fft.dct(np.eye(self.size), axis=0, norm="ortho")

    @functools.cached_property
    def variances(self) -> Float[np.ndarray, "size size"]:
        """v."""
        k = np.arange(self.size)
        falling = 1 / (1.0 + k[:, None] ** 2 + k[None] ** 2)
        return falling * self.std**2 / falling.mean()

    def denoiser(self, sde: SDE) -> Denoiser:
        def posterior_mean(x_t: jax.Array, t: jax.Array, condition: object) -> jax.Array:
            both = jnp.asarray(self.transform, x_t.dtype)
            variances = jnp.asarray(self.variances, x_t.dtype)[None, :, :, None]
            alpha, sigma = expand(sde.alpha(t), x_t), expand(sde.sigma(t), x_t)
            gain = alpha * variances / (alpha**2 * variances + sigma**2)
            product = functools.partial(jnp.einsum, "ki,lj,bijc->bklc", precision="highest")
            return product(both.T, both.T, gain * product(both, both, x_t))

        return Denoiser(sde=sde, function=posterior_mean)

    def sample(self, count: int, seed: int) -> Float[np.ndarray, "count *shape"]:
        noise = np.random.default_rng(seed).normal(size=(count, self.size, self.size))
        values = np.sqrt(self.variances) * noise
        return np.einsum("ik,jl,bij->bkl", self.transform, self.transform, values)[..., None]

    def mean(self) -> Float[np.ndarray, "*shape"]:
        return np.zeros(self.shape)

    def covariance(self) -> Float[np.ndarray, "values values"]:
        whole = np.kron(self.transform, self.transform)
        return whole.T @ (self.variances.reshape(-1, 1) * whole)
