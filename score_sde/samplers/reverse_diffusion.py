r"""Reverse diffusion: the reverse-time SDE discretised as the forward process is.

With the exact forward transition x_t = a x_s + G z (a = α_t/α_s, G² its variance)

    x_s = (2 − a) x_t + G² score(x_t, t) + G z,   score = −ε̂/σ_t,   z ~ N(0, I)

For VP, a² = 1 − G² = 1 − β_i and this is eq. 46 of the paper; for VE, a = 1 and G² = σ_t² − σ_s². The exact
transition serves every affine process, sub-VP too. Source: Song et al. 2021, appendix E (eq. 46).
"""

import dataclasses
import itertools

from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.schedule import Level, Schedule, transition


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(LinearSolver):
    """The reverse diffusion predictor. See the module."""

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def convergence(self) -> float:
        return 1

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = mean = tape.start
        for t, s in itertools.pairwise(levels):
            a, std = transition(s, t)
            _, noise = tape.evaluate(x, t)
            mean = (2 - a) * x - std**2 / t.sigma * noise
            x = mean + std * tape.noise()
        return x, mean
