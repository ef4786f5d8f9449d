r"""Processes that are the discrete chains of DDPM and NCSN at the chain's own times, and affine SDEs between them.

A discrete process says how many steps it has, when they are and how a network trained on the chain numbers them, so
that `times: steps` trains the papers' discrete losses and published checkpoints mean the same.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from score_sde.sde.base import Times


@runtime_checkable
class Discrete(Protocol):
    """What a process with steps of its own has besides its `SDE` methods."""

    @property
    def step_times(self) -> Float[np.ndarray, "steps"]:
        """The chain's times, increasing, in float64."""

    def step_label(self, t: Times) -> Times:
        """The number by which the original networks are told the time t: an integer at the chain's times."""
