"""The plots of a comparison, as PNG: a line for each sampler, its seeds' spread as a band, the Pareto front ringed.

A band on a logarithmic axis goes from m e^{−s/m} to m e^{s/m}: m ± s to first order, and always positive.
"""

import io
from typing import Any, NamedTuple

import numpy as np

MARKERS = "osD^vP*X<>ph"
LARGEST_BAND = 2.0  # in the logarithm: of a spread many times the mean no more is drawn
TOO_FAR = 30  # times the median: what is worse is left out of the picture


class Line(NamedTuple):
    """One sampler's finished cells, by rising cost."""

    name: str
    dashed: bool
    cost: list[float]
    mean: list[float]
    spread: list[float]


class Level(NamedTuple):
    """A horizontal line: what data score, or how well the reference is known."""

    name: str
    mean: float
    spread: float


def pareto(cost: list[float], value: list[float], better: str) -> list[int]:
    """The places of the points than which none is both cheaper and better, from the cheapest on."""
    sign = 1 if better == "lower" else -1
    front: list[int] = []
    for place in sorted(range(len(cost)), key=lambda i: (cost[i], sign * value[i])):
        if not front or sign * value[place] < sign * value[front[-1]]:
            front.append(place)
    return front


def plot(lines: list[Line], level: Level | None, *, x: str, y: str, better: str, front: bool = True) -> bytes:
    """A PNG. The vertical axis is logarithmic where lower is better, those are distances, unless one is negative."""
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    figure = Figure(figsize=(8, 4.8), layout="constrained", dpi=130)
    axes = figure.subplots()
    values = [*(value for line in lines for value in line.mean), *([level.mean] if level else [])]
    logarithmic = better == "lower" and min(values, default=0) > 0  # an unbiased distance may be negative
    for number, line in enumerate(lines):
        _draw_line(axes, line, number, logarithmic)
    if front and lines:
        cost, value = ([each for line in lines for each in getattr(line, part)] for part in ("cost", "mean"))
        places = pareto(cost, value, better)
        xs, ys = [cost[i] for i in places], [value[i] for i in places]
        axes.plot(xs, ys, color="black", alpha=0.18, linewidth=7, solid_capstyle="round", zorder=1)
        axes.plot(xs, ys, "o", markersize=13, fillstyle="none", color="black", label="Pareto front", zorder=4)
    if level is not None:
        axes.axhline(level.mean, color="black", linestyle=":", linewidth=1.2, label=level.name)
        axes.axhspan(level.mean - level.spread, level.mean + level.spread, color="black", alpha=0.08, linewidth=0)
    _dress(axes, lines, logarithmic, x, f"{y}, {better} is better")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_line(axes: Any, line: Line, number: int, logarithmic: bool) -> None:
    from matplotlib import colormaps

    color = colormaps["tab20"](2 * number % 20 + number // 10 % 2)
    mean, spread = np.array(line.mean), np.array(line.spread)
    if logarithmic:
        growth = np.exp(np.minimum(spread / mean, LARGEST_BAND))
        low, high = mean / growth, mean * growth
    else:
        low, high = mean - spread, mean + spread
    axes.fill_between(line.cost, low, high, color=color, alpha=0.1, linewidth=0)
    style, marker = "--" if line.dashed else "-", MARKERS[number % len(MARKERS)]
    axes.plot(line.cost, mean, style, color=color, marker=marker, markersize=5, linewidth=1.4, label=line.name)


def _dress(axes: Any, lines: list[Line], logarithmic: bool, x: str, y: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    costs = sorted({cost for line in lines for cost in line.cost})
    if costs and costs[-1] > costs[0]:
        axes.set_xlim(costs[0] / 1.15, costs[-1] * 1.15)
    values = [value for line in lines for value in line.mean]
    if logarithmic:
        axes.set_yscale("log")
        if values and max(values) > TOO_FAR * np.median(values):
            axes.set_ylim(top=TOO_FAR * np.median(values))
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log":
            few = high / low < 20  # powers of ten alone would be too few labels
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            axis.set_minor_locator(LogLocator(subs=range(1, 10)) if few else NullLocator())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, which="both", linewidth=0.6)
