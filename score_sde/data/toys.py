r"""Points of the plane, without levels: `data.source=toys:NAME`. With u ~ U[0, 1), n ~ N(0, I) and σ = `noise`:

two_moons          ((cos a, sin a) or (1 − cos a, ½ − sin a), a = π u) less (½, ¼), times ⅔, plus σ n
swiss_roll         a (cos a, sin a)/(4.5 π) + σ n, a = 1.5 π (1 + 2u)
eight_gaussians    ¾ (cos a, sin a) + σ n, a = k π/4, k = 0 … 7
rings              r (cos a, sin a) + σ n, a = 2π u, r = ¼, ½, ¾ or 1
checkerboard       uniform over 8 of the 16 squares of [−1, 1)²: density ½, so that ln 2 nats, ½ bit/dim, is the least
                   that a model can have
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from score_sde.data.source import InMemory, Records
from score_sde.errors import Checks

Points = Float[np.ndarray, "count 2"]


def _two_moons(generator: np.random.Generator, count: int) -> Points:
    a, lower = math.pi * generator.random(count), generator.random(count) < 0.5
    points = np.where(lower, (1 - np.cos(a), 0.5 - np.sin(a)), (np.cos(a), np.sin(a))).T
    return (points - np.array([0.5, 0.25])) * 2 / 3


def _swiss_roll(generator: np.random.Generator, count: int) -> Points:
    a = 1.5 * math.pi * (1 + 2 * generator.random(count))
    return _on_circle(a / (4.5 * math.pi), a)


def _eight_gaussians(generator: np.random.Generator, count: int) -> Points:
    return _on_circle(np.full(count, 0.75), generator.integers(8, size=count) * math.pi / 4)


def _rings(generator: np.random.Generator, count: int) -> Points:
    return _on_circle((1 + generator.integers(4, size=count)) / 4, 2 * math.pi * generator.random(count))


def _checkerboard(generator: np.random.Generator, count: int) -> Points:
    row, pair = generator.integers(4, size=count), generator.integers(2, size=count)
    return (np.stack([2 * pair + row % 2, row], axis=1) + generator.random((count, 2))) / 2 - 1


def _on_circle(r: Float[np.ndarray, "count"], a: Float[np.ndarray, "count"]) -> Points:
    return np.stack([r * np.cos(a), r * np.sin(a)], axis=1)


TOYS: dict[str, Callable[[np.random.Generator, int], Points]] = {
    "two_moons": _two_moons,
    "swiss_roll": _swiss_roll,
    "eight_gaussians": _eight_gaussians,
    "rings": _rings,
    "checkerboard": _checkerboard,
}
WITHOUT_NOISE = ("checkerboard",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toys:
    """name: a row of `TOYS`. records: in the training part; a fifth as many, or 2, are the test part. noise: σ."""

    ARGUMENT = "name"

    name: str = "two_moons"
    records: int = 50_000
    noise: float = 0.05

    def __post_init__(self) -> None:
        with Checks() as check:
            check.name("toy", self.name, TOYS)
            check.that(1 <= self.records <= 10**8, f"records must lie in [1, 1e8], not {self.records}")
            check.that(self.noise >= 0, f"noise must be at least 0, not {self.noise}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def levels(self) -> int:
        return 0

    @property
    def classes(self) -> int:
        return 0

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def split(self, name: str) -> Records:
        """ "train" or "test", with field `image`: the points."""
        count = {"train": self.records, "test": max(2, self.records // 5)}[name]
        generator = np.random.default_rng({"train": 0, "test": 1}[name])
        points = TOYS[self.name](generator, count)
        if self.name not in WITHOUT_NOISE:
            points = points + self.noise * generator.normal(size=points.shape)
        return InMemory({"image": points.astype(np.float32)})
