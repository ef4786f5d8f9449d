"""How long a compiled step takes at best, and the arithmetic that a network needs: an estimate, never a measurement.

    compute         FLOPs of the compiled program / FLOPs a second of the chip in bfloat16
    memory          bytes that its operations read and write / bandwidth of the memory
    communication   Σ bytes sent / bandwidth of the links that they are sent over
    step            max(compute, memory, communication that others overlap) + communication that nothing overlaps

(Williams, Waterman & Patterson 2009). What no chip reaches is left out: a matrix too narrow for its unit, latency.

A training step's model FLOPs are three times those of the network's forward pass, for the output, the gradient of what
goes in and that of the parameters, whatever is computed again to save memory (Chowdhery et al. 2022, appendix B). The
model's utilisation is what share of the chips' peak they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from score_sde.distributed.chips import Chip, bandwidth
from score_sde.distributed.collectives import Collective


class Roofline(NamedTuple):
    """Seconds. hidden, exposed: of communication, that other work overlaps and that nothing does."""

    compute: float
    memory: float
    hidden: float
    exposed: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"compute": self.compute, "memory": self.memory, "communication": self.hidden + self.exposed}
        return max(parts, key=lambda name: parts[name])


def roofline(
    chip: Chip, mesh: jax.sharding.Mesh, flops: float, accessed: float, communication: Iterable[Collective]
) -> Roofline:
    """Of one step on one chip: its FLOPs, the bytes its operations access, what it sends."""
    seconds = {True: 0.0, False: 0.0}
    for each in communication:
        seconds[each.overlapped] += each.sent / bandwidth(chip, mesh, each.axes)
    return Roofline(flops / chip.flops, accessed / chip.bandwidth, seconds[True], seconds[False])


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications and additions in the matrix products and convolutions of a function, computing nothing.

    Of a conditional the costliest branch counts, a loop that says of no length once. Zeros that pad a convolution
    count, those that its dilation puts between values do not.
    """
    return flops_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops_of(jaxpr: core.Jaxpr, unknown: int = 1) -> int:
    """See `flops`, of a function that is traced already. unknown: passes of a loop that says of none."""
    return sum(_of_equation(equation, unknown) for equation in jaxpr.eqns)


def _of_equation(equation: Any, unknown: int) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        products = math.prod(out) * math.prod(kernel) // features
        return 2 * products // math.prod(parameters["lhs_dilation"])
    if name == "product":  # of `models.precision`
        shapes = [jax.ShapeDtypeStruct(operand.aval.shape, operand.aval.dtype) for operand in equation.invars]
        return flops(parameters["compute"], *shapes)
    inner = [flops_of(each, unknown) for each in _jaxprs(parameters.values())]
    if name == "cond":
        return max(inner)
    return sum(inner) * {"scan": parameters.get("length", 1), "while": unknown}.get(name, 1)


def _jaxprs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
