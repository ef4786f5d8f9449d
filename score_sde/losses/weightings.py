r"""Weightings w(t) of the squared error of a prediction P, which is ε for most.

    L = E_t  w(t) · E mean_d (P̂(x_t, t) − P)²

Errors of one prediction are errors of every other at the same x_t,

    |ε̂ − ε|² = σ² |score error|² = SNR |x̂_0 − x_0|² = α²/(α² + σ²)² |v̂ − v|²,   SNR = e^{log_snr} = α²/σ²

so the choice of P is one of numbers: where α_T = 0 the error of ε vanishes at T, and v's does not. −log_snr' = g²/σ².

    weighting      P         w(t)                          the paper's
    sigma2         ε         1                             λ(t) = σ² on the score (Song et al. 2021); DDPM's simple loss
    likelihood     ε         g²/σ²                         λ(t) = g² on the score (Song, Durkan, Murray & Ermon 2021)
    vlb            ε         ½ (T − t_min) g²/σ²           E over uniform t is the bound's diffusion term, in nats a
                                                           dimension (Kingma et al. 2021, eq. 15)
    v              v         1                             the plain squared error of v (Salimans & Ho 2022, "SNR + 1")
    velocity       velocity  1                             that of the velocity, flow matching (Lipman et al. 2023)
    edm            v         (σ² + α² σ_d²)/(σ_d² (α² + σ²)²)
                                                           λ(σ̄) = (σ̄² + σ_d²)/(σ̄ σ_d)² on D (Karras et al. 2022)
    min_snr        ε         min(1, γ/SNR)                 min(SNR, γ) on x_0 (Hang et al. 2023)
    soft_min_snr   ε         γ/(SNR + γ)                   SNR γ/(SNR + γ) on x_0 (Crowson et al. 2024, "Hourglass")
    p2             ε         (k + SNR)^{−γ}                on ε (Choi et al. 2022)
    sigmoid        ε         ½ (T − t_min) g²/σ² · sigmoid(b − log_snr)
                                                           ½ (−log_snr') e^b sigmoid(log_snr − b) on x_0 (Kingma & Gao
                                                           2023; Hoogeboom et al. 2024, "Simpler Diffusion")

The first two are also for augmented processes, with ε̂_v, the noise of the velocity, and its σ.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from score_sde.errors import Checks, UserError
from score_sde.sde import SDE, Process, check_kind
from score_sde.typing import PerSample, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting(abc.ABC):
    """w(t) for a process. Subclasses are final.

    processes: those that it is for. of: the prediction whose error it weights, a row of `denoiser.PREDICTIONS`.
    """

    processes: ClassVar[type] = SDE
    of: ClassVar[str] = "epsilon"

    def check(self, sde: Process) -> None:
        """Raises UserError where the process has no such weight, or it is infinite."""
        check_kind("this weighting", sde, self.processes, "use 'sigma2' or 'likelihood'")

    @abc.abstractmethod
    def __call__(self, sde: Any, t: Time) -> PerSample:
        """w(t), `(batch,)`."""


def _rate(sde: Process, t: Time) -> PerSample:
    """g²/σ² = −d log_snr/dt."""
    return (sde.diffusion_coefficient(t) / sde.sigma(t)) ** 2


def _check_rate(name: str, sde: Process) -> None:
    if sde.ends_in_noise:
        raise UserError(f"{name!r} is infinite at T, where the process ends in pure noise; use another, or a smaller T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigma2(Weighting):
    """All times alike."""

    processes: ClassVar[type] = Process

    def __call__(self, sde: Process, t: Time) -> PerSample:
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(Weighting):
    """Of the evidence bound, with the constants of Song et al."""

    processes: ClassVar[type] = Process

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("likelihood", sde)

    def __call__(self, sde: Process, t: Time) -> PerSample:
        return _rate(sde, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLB(Weighting):
    """Of the evidence bound, in nats a dimension."""

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("vlb", sde)

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return 0.5 * (sde.T - sde.t_min) * _rate(sde, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class V(Weighting):
    """The plain squared error of v."""

    of: ClassVar[str] = "v"

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(Weighting):
    """The plain squared error of the velocity."""

    of: ClassVar[str] = "velocity"

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMWeighting(Weighting):
    """EDM's. sigma_data: the data's standard deviation."""

    of: ClassVar[str] = "v"

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data must be positive, not {self.sigma_data}")

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        signal, noise = sde.alpha(t) ** 2, sde.sigma(t) ** 2
        return (noise / self.sigma_data**2 + signal) / (signal + noise) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """min-SNR-γ."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"gamma must be positive, not {self.gamma}")

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        signal, noise = sde.alpha(t) ** 2, self.gamma * sde.sigma(t) ** 2
        return noise / jnp.maximum(signal, noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftMinSNR(Weighting):
    """The smooth form of min-SNR-γ."""

    gamma: float = 4.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"gamma must be positive, not {self.gamma}")

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        noise, signal = self.gamma * sde.sigma(t) ** 2, sde.alpha(t) ** 2
        return noise / (signal + noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class P2(Weighting):
    """Perception prioritised."""

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.gamma >= 0, f"gamma must be at least 0, not {self.gamma}")
            check.that(self.k > 0, f"k must be positive, not {self.k}")

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return (self.k + (sde.alpha(t) / sde.sigma(t)) ** 2) ** -self.gamma


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid(Weighting):
    """bias: the log_snr at which the weight has fallen to half, seen from noise to data."""

    bias: float = -3.0

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("sigmoid", sde)

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return 0.5 * (sde.T - sde.t_min) * _rate(sde, t) * jax.nn.sigmoid(self.bias - sde.log_snr(t))


WEIGHTINGS: dict[str, type[Weighting]] = {
    "sigma2": Sigma2,
    "likelihood": Likelihood,
    "vlb": VLB,
    "v": V,
    "velocity": Velocity,
    "edm": EDMWeighting,
    "min_snr": MinSNR,
    "soft_min_snr": SoftMinSNR,
    "p2": P2,
    "sigmoid": Sigmoid,
}
