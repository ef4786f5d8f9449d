r"""Weightings w(t) of the squared error of ε̂.

    L = E_t  w(t) · E mean_d (ε̂(x_t, t) − ε)²

An error of ε̂ is one of the score, of x_0 and of the other predictions, at the same x_t:

    |ε̂ − ε|² = σ² |score error|² = SNR |x̂_0 − x_0|²,   SNR = e^{log_snr} = α²/σ²

so a weight is stated below for ε and, where the paper has it so, for another quantity. −log_snr' = g²/σ².

    weighting      w(t)                          the paper's
    sigma2         1                             λ(t) = σ² on the score (Song et al. 2021); DDPM's simple loss
    likelihood     g²/σ²                         λ(t) = g² on the score (Song, Durkan, Murray & Ermon 2021)
    vlb            ½ (T − t_min) g²/σ²           E over uniform t is the bound's diffusion term, in nats a dimension
                                                 (Kingma et al. 2021, eq. 15)
    v              (α² + σ²)²/α²                 1 on v: plain squared error of v (Salimans & Ho 2022, "SNR + 1" on x_0)
    velocity       g⁴/(4 σ²)                     1 on the velocity, as in flow matching (Lipman et al. 2023)
    edm            (σ̄² + σ_d²)/σ_d²              λ(σ̄) = (σ̄² + σ_d²)/(σ̄ σ_d)² on D (Karras et al. 2022)
    min_snr        min(1, γ/SNR)                 min(SNR, γ) on x_0 (Hang et al. 2023)
    soft_min_snr   γ/(SNR + γ)                   SNR γ/(SNR + γ) on x_0 (Crowson et al. 2024, "Hourglass Diffusion")
    p2             (k + SNR)^{−γ}                on ε (Choi et al. 2022)
    sigmoid        ½ (T − t_min) g²/σ² · sigmoid(b − log_snr)
                                                 ½ (−log_snr') e^b sigmoid(log_snr − b) on x_0 (Kingma & Gao 2023;
                                                 Hoogeboom et al. 2024, "Simpler Diffusion")

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

    processes: those that it is for.
    """

    processes: ClassVar[type] = SDE

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

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("v", sde)

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return ((alpha**2 + sigma**2) / alpha) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(Weighting):
    """The plain squared error of the velocity."""

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("velocity", sde)

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return (0.5 * sde.sigma(t) * _rate(sde, t)) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMWeighting(Weighting):
    """EDM's. sigma_data: the data's standard deviation."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data must be positive, not {self.sigma_data}")

    def check(self, sde: Process) -> None:
        super().check(sde)
        _check_rate("edm", sde)

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return (sde.sigma_bar(t) / self.sigma_data) ** 2 + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """min-SNR-γ."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"gamma must be positive, not {self.gamma}")

    def __call__(self, sde: SDE, t: Time) -> PerSample:
        return jnp.minimum(1.0, self.gamma * sde.sigma_bar(t) ** 2)


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
