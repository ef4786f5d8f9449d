"""What an oracle is."""

import abc

import numpy as np
from jaxtyping import Float

from score_sde.denoiser import Denoiser
from score_sde.sde import SDE


class Oracle(abc.ABC):
    """A distribution with a known posterior mean E[x_0 | x_t], so that a sampler's own error is all there is."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @abc.abstractmethod
    def denoiser(self, sde: SDE) -> Denoiser:
        """The exact posterior mean, as a Denoiser that predicts x_0."""

    @abc.abstractmethod
    def sample(self, count: int, seed: int) -> Float[np.ndarray, "count *shape"]:
        """Independent samples of the data, in float64."""

    @abc.abstractmethod
    def mean(self) -> Float[np.ndarray, "*shape"]:
        """Of the data."""

    @abc.abstractmethod
    def covariance(self) -> Float[np.ndarray, "values values"]:
        """Of the data, flattened."""
