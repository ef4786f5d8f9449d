"""Distributions with an exact denoiser: what samplers are measured on. To add one: its line in `ORACLES`."""

from collections.abc import Callable

from score_sde.oracles.base import Oracle
from score_sde.oracles.gaussian_images import GaussianImages
from score_sde.oracles.mixture import Mixture, checkerboard, gaussian, mixture, ring, swiss_roll

ORACLES: dict[str, Callable[[], Oracle]] = {
    "ring": ring,
    "checkerboard": checkerboard,
    "swiss_roll": swiss_roll,
    "gaussian_images": GaussianImages,
}

__all__ = [
    "ORACLES",
    "GaussianImages",
    "Mixture",
    "Oracle",
    "checkerboard",
    "gaussian",
    "mixture",
    "ring",
    "swiss_roll",
]
