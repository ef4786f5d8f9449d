r"""Critically damped Langevin diffusion: data x coupled to a velocity v, and noise in the velocity alone.

With z = (x, v), mass M and Γ = 2 √M (critical damping), for every dimension of the data

    dx = (β/M) v dt
    dv = −β x dt − (Γ β/M) v dt + √(2 Γ β) dw                 (β constant, as for the paper's CIFAR-10)

Time runs from data (t_min) to noise (T), where z ~ N(0, I) × N(0, M I), the stationary law. At t = 0 the velocity is
N(0, γ M I), apart from the data.

Closed forms. In units u = v/√M and τ = β t/√M the process has no parameter left:

    dx = u dτ,   du = −x dτ − 2 u dτ + 2 dw

Its drift matrix has the double eigenvalue −1, hence

    Φ(τ) = exp([[0, 1], [−1, −2]] τ) = e^{−τ} [[1 + τ, τ], [−τ, 1 − τ]]
    Q(τ) = 4 ∫₀^τ Φ(r) [[0, 0], [0, 1]] Φ(r)ᵀ dr              (z_0 known)
    Σ(τ) = Q(τ) + Φ(τ) [[0, 0], [0, γ]] Φ(τ)ᵀ                 (x_0 known, v_0 integrated out)

and in y = 2τ, with w = e^{−y},

    Σ_xx = y³ p(y) + γ w y²/4                      p(y) = (1 − w (1 + y + y²/2))/y³
    Σ_xu = w y ((1 − γ/2) y + γ)/2
    Σ_uu = 1 − w (1 − y + y²/2) + γ w (1 − y/2)²
    |Σ|  = y⁴ d(y) + γ w y³ k(y)                   d(y) = ((1 − w)² − y² w)/y⁴,   k(y) = (1 − y + y²/2 − w)/y³

For 0 ≤ γ ≤ 1 every term is positive, so the sums cancel nothing, and Σ_uu is left as expm1 and a small rest. The
numerators of p, k and d vanish with y³, y³ and y⁴. (y³ p is Q_xx = 4 ∫ r² e^{−2r}; y³ k is 4 w ∫ r² e^{2r}, of the
process run backward.) For small y

    p(y) = w Σ_n yⁿ/(n + 3)!,   k(y) = Σ_n (−y)ⁿ/(n + 3)!
    d(y) = ¼ w S (2 + τ² S),   S = (sinh τ − τ)/τ³ = Σ_n τ²ⁿ/(2n + 3)!        from |Q| = 4 w (sinh²τ − τ²)

The Cholesky factor has l_xx = √Σ_xx, l_xu = Σ_xu/l_xx and l_uu = √(|Σ|/Σ_xx): never the difference Σ_uu − l_xu², which
for γ = 0 and small t loses three quarters of 4τ. Back in v, each index u is a factor √M.

Source: Dockhorn, Vahdat & Kreis, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion", ICLR
2022, sec. 3 and appendix B; the closed forms in y are ours. The authors' code adds 1e-9 (CIFAR-10; 1e-6 elsewhere) to
Σ_xx and Σ_vv and computes them in float64; the forms above need neither.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from score_sde import rng
from score_sde.errors import Checks
from score_sde.sde.base import Process, Times, expand
from score_sde.typing import Data, Keys, PerSample, Time

Matrices = Float[Array, "*times 2 2"]
State = Float[Array, "batch *shape"]  # positions, then as many velocities, along the last axis

GIVEN = ("x_0", "z_0")
SERIES = 24  # terms; at the largest argument in use, 4, the next one is below 1e-13 of the sum


class Cholesky(NamedTuple):
    """L = [[l_xx, 0], [l_xv, l_vv]] of one dimension's covariance, with any leading axes."""

    l_xx: Times
    l_xv: Times
    l_vv: Times

    def times(self, noise: State) -> State:
        """L ε of a state of noise, for factors `(batch,)`."""
        noise_x, noise_v = jnp.split(noise, 2, axis=-1)
        l_xx, l_xv, l_vv = (expand(factor, noise) for factor in self)
        return jnp.concatenate([l_xx * noise_x, l_xv * noise_x + l_vv * noise_v], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLD(Process):
    """Critically damped Langevin diffusion; the defaults are the paper's for CIFAR-10. See the module.

    A state `(batch, *shape[:-1], 2 shape[-1])` has the positions first and the velocities second on its last axis.

    beta: β. mass: M; it fixes the damping. gamma: γ, the variance of the first velocity in units of M, in [0, 1].
    t_min: where sampling ends and training begins. At t = 0 x has no noise of its own and determines the velocity that
    took it there, so ℓ_t = 1/l_vv diverges as 1/√t. At 1e-3, where the authors' sampler ends, x_t given x_0 has a
    standard deviation of 0.0018, a quarter of one of 256 levels on [−1, 1].
    Methods take a time of any shape; methods of a state take `(batch,)`.
    Raises UserError where a parameter makes no sense.
    """

    kind: ClassVar[str] = "augmented processes (cld)"

    beta: float = 4.0
    mass: float = 0.25
    gamma: float = 0.04
    t_min: float = 1e-3
    T: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            for name in ("beta", "mass"):
                value = getattr(self, name)
                check.that(0 < value < math.inf, f"{name} must be positive and finite, not {value}")
            # A velocity wider than its stationary law would make Σ_xv a difference.
            check.that(0 <= self.gamma <= 1, f"gamma must be in [0, 1], not {self.gamma}")
            check.that(
                0 < self.t_min < self.T < math.inf,
                f"t_min and T must satisfy 0 < t_min < T, not t_min={self.t_min}, T={self.T}",
            )

    def check_float32(self) -> None:
        t = jnp.asarray([self.t_min, self.T], jnp.float32)
        covariance, cholesky = jax.device_get((self.covariance(t), self.cholesky(t)))
        with Checks() as check:
            for row, where in enumerate(("t_min", "T")):
                values = [*covariance[row][np.tril_indices(2)], cholesky.l_xx[row], cholesky.l_vv[row]]
                sound = np.isfinite(values) & (np.asarray(values) > 0)
                # Far beyond the relaxation time x and v become uncorrelated, to the last bit.
                sound[1] |= np.isfinite(values[1])
                check.that(bool(np.all(sound)), f"float32 does not hold Σ at {where}={getattr(self, where)}")

    @property
    def damping(self) -> float:
        """Γ = 2 √M."""
        return 2 * math.sqrt(self.mass)

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 2 * shape[-1])

    def data_of(self, z: State) -> Data:
        """The positions x."""
        return jnp.split(z, 2, axis=-1)[0]

    def velocity_of(self, z: State) -> Data:
        """The velocities v."""
        return jnp.split(z, 2, axis=-1)[1]

    def drift_matrix(self, t: Times) -> Matrices:
        """[[0, β/M], [−β, −Γ β/M]], the same at every t."""
        matrix = [[0, self.beta / self.mass], [-self.beta, -self.damping * self.beta / self.mass]]
        return jnp.broadcast_to(jnp.asarray(matrix, t.dtype), (*t.shape, 2, 2))

    def drift(self, z_t: State, t: Time) -> State:
        """The drift of the forward process."""
        return _apply(self.drift_matrix(t), z_t)

    def sigma(self, t: Times) -> Times:
        """l_vv, the standard deviation of the velocity's noise once the position is known; 1/ℓ_t of the paper."""
        return self.cholesky(t).l_vv

    def diffusion_coefficient(self, t: Times) -> Times:
        """g = √(2 Γ β), of the velocity; the position has none."""
        return jnp.full_like(t, math.sqrt(2 * self.damping * self.beta))

    def transition_matrix(self, s: Times, t: Times) -> Matrices:
        """The matrix that takes z_s to the mean of z_t, s ≤ t. 1 − τ in its corner crosses zero at τ = 1."""
        tau, root = self._duration(t - s) / 2, math.sqrt(self.mass)
        rows = [[1 + tau, tau / root], [-root * tau, 1 - tau]]
        return jnp.exp(-tau)[..., None, None] * jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)

    def covariance(self, t: Times, given: str = "x_0") -> Matrices:
        """Of z_t, given x_0 (v_0 integrated out, for hybrid score matching) or z_0 = (x_0, v_0) (for denoising's)."""
        gamma = self._gamma(given)
        y = self._duration(t)
        w = jnp.exp(-y)
        xx = y**2 * (y * _p(y) + gamma * w / 4)
        xu = w * y * ((1 - gamma / 2) * y + gamma) / 2
        uu = -jnp.expm1(-y) + w * (y - y**2 / 2) + gamma * w * (1 - y / 2) ** 2
        xv, vv = math.sqrt(self.mass) * xu, self.mass * uu
        return jnp.stack([jnp.stack([xx, xv], axis=-1), jnp.stack([xv, vv], axis=-1)], axis=-2)

    def cholesky(self, t: Times, given: str = "x_0") -> Cholesky:
        """The lower-triangular factor of `covariance(t, given)`. The paper's ℓ_t is 1/l_vv."""
        return self._cholesky(self._duration(t), self._gamma(given))

    def marginal(self, x_0: Data, t: Time) -> tuple[State, Cholesky]:
        """Mean, a state, and Cholesky factor `(batch,)` of z_t given x_0: z_t = mean + factor.times(ε)."""
        return self.conditional_mean(x_0, jnp.zeros_like(x_0), t), self.cholesky(t)

    def conditional_mean(self, x_0: Data, v_0: Data, t: Time) -> State:
        """The mean of z_t given z_0 = (x_0, v_0)."""
        return _apply(self.transition_matrix(jnp.zeros_like(t), t), jnp.concatenate([x_0, v_0], axis=-1))

    def transition(self, z_s: State, s: Time, t: Time) -> tuple[State, Cholesky]:
        """Mean, a state, and Cholesky factor `(batch,)` of z_t given z_s, s ≤ t. Exact."""
        return _apply(self.transition_matrix(s, t), z_s), self._cholesky(self._duration(t - s), 0.0)

    def prior_sample(self, keys: Keys, shape: tuple[int, ...]) -> State:
        """z_T ~ N(0, I) × N(0, M I), one per key."""
        x, u = jnp.split(rng.normal(keys, self.state_shape(shape)), 2, axis=-1)
        return jnp.concatenate([x, math.sqrt(self.mass) * u], axis=-1)

    def prior_log_prob(self, z: State) -> PerSample:
        """log N(x; 0, I) N(v; 0, M I) in nats, `(batch,)`."""
        x, v = (part.reshape(part.shape[0], -1) for part in jnp.split(z, 2, axis=-1))
        log_normaliser = x.shape[1] * (math.log(2 * math.pi) + 0.5 * math.log(self.mass))
        return -0.5 * jnp.sum(x**2 + v**2 / self.mass, axis=1) - log_normaliser

    def _duration(self, t: Times) -> Times:
        """y = 2 τ = 2 β t/√M."""
        return 2 * self.beta / math.sqrt(self.mass) * t

    def _gamma(self, given: str) -> float:
        """The variance of u_0 that is left."""
        with Checks() as check:
            check.name("start", given, GIVEN)
        return self.gamma if given == "x_0" else 0.0

    def _cholesky(self, y: Times, gamma: float) -> Cholesky:
        """Powers of y are taken out of numerators and denominators, so that nothing is 0/0 at y = 0 or underflows."""
        w = jnp.exp(-y)
        if gamma == 0:
            p = _p(y)
            l_xx, l_xu, l_uu = y * jnp.sqrt(y * p), jnp.sqrt(y / p) * w / 2, jnp.sqrt(y * _d(y) / p)
        else:
            xx = y * _p(y) + gamma * w / 4  # Σ_xx/y²
            l_xx, l_xu = y * jnp.sqrt(xx), w * ((1 - gamma / 2) * y + gamma) / (2 * jnp.sqrt(xx))
            l_uu = jnp.sqrt(y * (y * _d(y) + gamma * w * _k(y)) / xx)
        root = math.sqrt(self.mass)
        return Cholesky(l_xx, root * l_xu, root * l_uu)


def _apply(matrix: Float[Array, "batch 2 2"], z: State) -> State:
    """The matrix on (x, v) of every dimension."""
    x, v = jnp.split(z, 2, axis=-1)
    m = lambda row, column: expand(matrix[:, row, column], z)
    return jnp.concatenate([m(0, 0) * x + m(0, 1) * v, m(1, 0) * x + m(1, 1) * v], axis=-1)


def _series(x: Times, step: int) -> Times:
    """Σ_n xⁿ/(step n + 3)!, by Horner's rule."""
    total = jnp.zeros_like(x)
    for n in reversed(range(SERIES)):
        total = total * x + 1 / math.factorial(step * n + 3)
    return total


def _split(y: Times, below: float) -> tuple[Times, Times, Times]:
    """Where y is small, and y for the series and for the closed form, each at a harmless value where it is not used."""
    small = y < below
    return small, jnp.where(small, y, 0.0), jnp.where(small, below, y)


def _p(y: Times) -> Times:
    """(1 − e^{−y} (1 + y + y²/2))/y³."""
    small, near, far = _split(y, 2.0)
    return jnp.where(small, jnp.exp(-near) * _series(near, 1), (1 - jnp.exp(-far) * (1 + far + far**2 / 2)) / far**3)


def _k(y: Times) -> Times:
    """(1 − y + y²/2 − e^{−y})/y³."""
    small, near, far = _split(y, 2.0)
    return jnp.where(small, _series(-near, 1), (1 - far + far**2 / 2 - jnp.exp(-far)) / far**3)


def _d(y: Times) -> Times:
    """((1 − e^{−y})² − y² e^{−y})/y⁴."""
    small, near, far = _split(y, 4.0)
    half = near / 2
    series = _series(half**2, 2)
    closed = (-jnp.expm1(-far)) ** 2 - far**2 * jnp.exp(-far)
    return jnp.where(small, jnp.exp(-near) * series * (2 + half**2 * series) / 4, closed / far**4)
