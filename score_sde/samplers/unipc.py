r"""UniPC: a predictor of order p, and a corrector that uses the next prediction, which costs nothing, for order p + 1.

In λ, with P the data or the noise, and "polynomial" the exact step of `exponential`,

    predict    x̂_s by the polynomial through P_t and the p − 1 predictions before it
    evaluate   P̂_s = P(x̂_s, s), which serves the next step as its P_t too
    correct    x_s by the polynomial through P̂_s as well, from the same x_t

The paper's coefficients solve R(h) a B(h) = φ(h). Where they are solved B cancels, and what is left is this
polynomial; B remains in the two cases in which the paper takes a = ½ instead, the predictor of p = 2 and the
corrector of p = 1:

    decay x_t + whole P_t + scale B ½ (P_j − P_t) h/(λ_j − λ_t),     B = h ("bh1") or |1 − e^{−h}|, |e^h − 1| ("bh2")

The last step is not corrected: there is no evaluation at t_min. Its error, O(h^{p+1}) once, keeps the order. Source:
Zhao et al., "UniPC", 2023, algorithms 1 and 2, and its code.
"""

import dataclasses
import itertools
from typing import ClassVar

from score_sde.errors import Checks
from score_sde.samplers import dpm_solver, exponential
from score_sde.samplers.exponential import Node
from score_sde.samplers.linear import LinearSolver, Tape, Vector
from score_sde.samplers.multistep import STARTS, lowered, start_order
from score_sde.samplers.schedule import Level, Schedule

B_FUNCTIONS = ("bh1", "bh2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(LinearSolver):
    """order: p, 1 to 3. prediction: "data" or "noise". b: B(h). corrector: whether it runs. See the module.

    start, last_order: see `multistep`.
    """

    from_pure_noise: ClassVar[bool] = False

    order: int = 3
    prediction: str = "data"
    b: str = "bh2"
    corrector: bool = True
    start: str = "exact"
    last_order: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.order <= 3, f"order must be 1, 2 or 3, not {self.order}")
            check.name("prediction", self.prediction, exponential.PREDICTIONS)
            check.name("b", self.b, B_FUNCTIONS)
            check.name("start", self.start, STARTS)
            check.that(0 <= self.last_order <= self.order, f"last_order must lie in [0, {self.order}]")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def convergence(self) -> float:
        return lowered(self.order + self.corrector, self.start, self.last_order, first=1 + self.corrector)

    @property
    def evaluations_per_step(self) -> int:
        return 1

    def solve(self, tape: Tape, schedule: Schedule, levels: list[Level]) -> tuple[Vector, Vector]:
        x = tape.start
        start = self.order - 1 + self.corrector  # the order of single steps to start with
        inside = dpm_solver.inside(schedule, levels[: self.order], max(1, start) if self.order > 2 else 1)
        nodes = [exponential.evaluate(tape, self.prediction, x, levels[0])]
        for n, (t, s) in enumerate(itertools.pairwise(levels)):
            last = n == len(levels) - 2
            single = start_order(self.order, len(nodes), self.start) > 0
            if single:
                ahead = exponential.single_step(tape, self.prediction, x, t, s, inside[n], nodes[0])
            else:
                ahead = self._step(x, t, s, nodes[: self.last_order] if last and self.last_order else nodes)
            if last:
                return ahead, ahead
            new = exponential.evaluate(tape, self.prediction, ahead, s)
            if self.corrector and not single:
                x = self._correct(x, t, s, nodes, new)
                tape.store(x)
            else:
                x = ahead
            nodes = [new, *nodes][: self.order]
        raise AssertionError("a grid has two times or more")

    def _step(self, x: Vector, t: Level, s: Level, nodes: list[Node]) -> Vector:
        if len(nodes) == 2 and self.order == 2:
            return self._half(x, t, s, nodes[0], nodes[1])
        return exponential.predict(self.prediction, x, t, s, nodes)

    def _correct(self, x: Vector, t: Level, s: Level, nodes: list[Node], new: Node) -> Vector:
        if len(nodes) == 1:
            return self._half(x, t, s, nodes[0], new)
        return exponential.predict(self.prediction, x, t, s, [*nodes, new])

    def _half(self, x: Vector, t: Level, s: Level, first: Node, other: Node) -> Vector:
        """The step with a = ½."""
        h = s.lambda_t - t.lambda_t
        whole = exponential.whole(self.prediction, t, s)
        scale = s.alpha if self.prediction == "data" else -s.sigma
        weight = 0.5 * (whole if self.b == "bh2" else scale * h) * h / (other.position - first.position)
        step = exponential.predict(self.prediction, x, t, s, [first])
        return step + weight * (other.prediction - first.prediction)
