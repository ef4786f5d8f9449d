"""The tables, plots and page of a comparison. The page holds all that it shows and opens without a network."""

import base64
import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from PIL import Image

from score_sde.experiment.base import Experiment
from score_sde.experiment.comparison import cells as cell_tools
from score_sde.experiment.comparison.bench import Bench, Record, Result
from score_sde.experiment.comparison.cells import Cell
from score_sde.experiment.comparison.plots import Level, Line, pareto, plot
from score_sde.experiment.comparison.problem import Picture
from score_sde.writers import write_atomically, write_json

TEMPLATE = Path(__file__).with_name("report.html.jinja")
LARGEST_PICTURE = 300
COSTS = {"evaluations": ("NFE, network evaluations per sample", "nfe"), "seconds": ("seconds per cell", "seconds")}


def write(experiment: Experiment, bench: Bench, cells: list[Cell], results: list[Result], folder: Path) -> str:
    """All files of the report into `folder`; what is to be printed."""
    rows = [_row(experiment, cell, result.record) for cell, result in zip(cells, results, strict=True)]
    _mark_fronts(rows, bench)
    reference = _reference(bench, rows)
    plots = _plots(bench, rows, reference)
    summary = _summary(experiment, bench, rows, reference)
    html = _page(experiment, bench, rows, results, summary, plots)  # by all processes: they read together
    if jax.process_index() == 0:
        write_json(folder / "compare.json", summary)
        text = _csv(bench, rows)
        write_atomically(folder / "compare.csv", functools.partial(Path.write_text, data=text))
        for name, picture in plots.items():
            write_atomically(folder / f"{name}.png", functools.partial(Path.write_bytes, data=picture))
        write_atomically(folder / "report.html", functools.partial(Path.write_text, data=html))
    return f"{_text(bench, rows)}\nreport: {folder / 'report.html'}"


def line(result: Result, bench: Bench) -> str:
    """A cell's result in a few words."""
    record = result.record
    if record["status"] != "done":
        return f"{record['status']}: {record['reason']}"
    first = next(iter(bench.problem.measures))
    seconds = f"{record['seconds'][0]:.2f} s and {record['compile_seconds']:.1f} s of compiling"
    return f"{bench.problem.measures[first].title} {figure(record['scores'][first])}, {seconds}"


def figure(value: Any) -> str:
    """mean ± spread, to three digits."""
    if value is None:
        return "–"
    mean, spread = value if isinstance(value, list | tuple) else (value["mean"], value["spread"])
    return f"{mean:.3g}" if spread is None else f"{mean:.3g} ± {spread:.1g}"


def _row(experiment: Experiment, cell: Cell, record: Record) -> dict[str, Any]:
    sampler, solver = cell.sampler, cell.sampler.solver
    return {
        "sampler": cell.name,
        "at": cell.at,
        "budget": cell.budget,
        "tolerance_factor": cell.factor,
        "grid": "times" if sampler.times else sampler.grid,
        "steps": None if cell.skipped else len(sampler.times) - 1 if sampler.times else sampler.steps,
        "evaluations": record.get("evaluations"),
        "all_counted": solver.counts_evaluations,
        "status": record["status"],
        "reason": record["reason"],
        "scores": {name: _named(pair) for name, pair in record.get("scores", {}).items()},
        "distance": _named(record.get("distance")),
        "seconds": _named(record.get("seconds")),
        **{key: record.get(key) for key in ("images_per_second", "compile_seconds", "program_of")},
        **{key: record.get(key) for key in ("memory_bytes", "device_peak_bytes")},
        "stochastic": solver.stochastic,
        "order": solver.convergence,
        "settings": cell.settings,
        "command": cell_tools.command(experiment, cell),
        "pareto": [],
    }


def _named(pair: list[float] | None) -> dict[str, float] | None:
    return None if pair is None else {"mean": pair[0], "spread": pair[1]}


def _done(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["status"] == "done"]


def _costing(rows: list[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """Those done whose cost is known: not by evaluations where only some of them are counted."""
    return [row for row in _done(rows) if cost != "evaluations" or row["all_counted"]]


def _cost(row: dict[str, Any], cost: str) -> float:
    return row["evaluations"] if cost == "evaluations" else row["seconds"]["mean"]


def _mark_fronts(rows: list[dict[str, Any]], bench: Bench) -> None:
    for name, measure in bench.problem.measures.items():
        for cost in COSTS:
            done = _costing(rows, cost)
            values = [row["scores"][name]["mean"] for row in done]
            for place in pareto([_cost(row, cost) for row in done], values, measure.better):
                done[place]["pareto"].append(f"{name} by {COSTS[cost][1]}")


def _reference(bench: Bench, rows: list[dict[str, Any]]) -> float | None:
    """How well the converged solution is known, RMS; None where no cell needed it."""
    lasts = {row["settings"]["last"] for row in _done(rows) if row["distance"] is not None}
    errors = [bench.converged(seed, last)[1] for last in sorted(lasts) for seed in bench.seeds]
    return max(errors, default=None)


def _lines(rows: list[dict[str, Any]], key: str, cost: str) -> list[Line]:
    """One a sampler of the comparison, empty ones too: so that a sampler has one colour in all plots."""
    lines = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        value = lambda row: row["distance"] if key == "distance" else row["scores"][key]
        own = [row for row in _costing(rows, cost) if row["sampler"] == name and value(row) is not None]
        own.sort(key=lambda row: _cost(row, cost))
        stochastic = any(row["stochastic"] for row in rows if row["sampler"] == name)
        values = [value(row) for row in own]
        means, spreads = [each["mean"] for each in values], [each["spread"] or 0.0 for each in values]
        lines.append(Line(name, stochastic, [_cost(row, cost) for row in own], means, spreads))
    return lines


def _plots(bench: Bench, rows: list[dict[str, Any]], reference: float | None) -> dict[str, bytes]:
    plots: dict[str, bytes] = {}
    if not _done(rows):
        return plots
    for name, measure in bench.problem.measures.items():
        level = Level(bench.problem.baseline, measure.baseline.mean, measure.baseline.spread or 0.0)
        for cost, (title, short) in COSTS.items():
            lines = _lines(rows, name, cost)
            if not any(line.cost for line in lines):
                continue
            plots[f"{name}_{short}"] = plot(
                lines, level, x=title, y=f"{bench.problem.measured}\n{measure.title}", better=measure.better
            )
    if reference is not None:
        level = Level("how well it is known", reference, 0.0)
        lines, y = _lines(rows, "distance", "evaluations"), "RMS distance to the converged solution"
        if any(line.cost for line in lines):
            plots["distance_nfe"] = plot(lines, level, x=COSTS["evaluations"][0], y=y, better="lower", front=False)
    return plots


def _summary(
    experiment: Experiment, bench: Bench, rows: list[dict[str, Any]], reference: float | None
) -> dict[str, Any]:
    compare, problem = experiment.compare, bench.problem
    metrics = {
        name: {"title": measure.title, "better": measure.better, "baseline": measure.baseline._asdict()}
        for name, measure in problem.measures.items()
    }
    return {
        "problem": problem.title,
        "measured": problem.measured,
        "baseline": problem.baseline,
        "process": experiment.config["sde"],
        "sampling_process": experiment.config["sampling_sde"],
        "seeds": bench.seeds,
        "num_samples": compare.num_samples,
        "batch_size": compare.batch_size,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "metrics": metrics,
        "best": _best(bench, rows, sorted(compare.nfe)),
        "reference_error": reference,
        "cells": rows,
    }


def _best(bench: Bench, rows: list[dict[str, Any]], budgets: list[int]) -> list[dict[str, Any]]:
    """At each budget and for each metric the best of the cells that spent no more."""
    table = []
    for budget in budgets:
        able = [row for row in _costing(rows, "evaluations") if row["evaluations"] <= budget]
        best = {}
        for name, measure in bench.problem.measures.items() if able else ():
            sign = 1 if measure.better == "lower" else -1
            row = min(able, key=lambda row: sign * row["scores"][name]["mean"])
            best[name] = {key: row[key] for key in ("sampler", "at", "evaluations")} | {"score": row["scores"][name]}
        table.append({"budget": budget, "best": best})
    return table


def _csv(bench: Bench, rows: list[dict[str, Any]]) -> str:
    """One line a cell; a figure with a spread is two columns."""
    plain = ["sampler", "budget", "tolerance_factor", "grid", "steps", "evaluations", "all_counted", "status", "reason"]
    after = ["images_per_second", "compile_seconds", "program_of", "memory_bytes", "device_peak_bytes"]
    after += ["stochastic", "order", "command"]
    spread = [*bench.problem.measures, "distance", "seconds"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    pairs = [column for key in spread for column in (key, f"{key}_spread")]
    writer.writerow([*plain, *pairs, *after, "pareto", "settings"])
    for row in rows:
        figures = [row["scores"].get(key) if key in bench.problem.measures else row[key] for key in spread]
        values = [part for each in figures for part in ((each["mean"], each["spread"]) if each else (None, None))]
        end = ["; ".join(row["pareto"]), json.dumps(row["settings"])]
        writer.writerow([*(row[key] for key in plain), *values, *(row[key] for key in after), *end])
    return buffer.getvalue()


def _page(
    experiment: Experiment,
    bench: Bench,
    rows: list[dict[str, Any]],
    results: list[Result],
    summary: dict[str, Any],
    plots: dict[str, bytes],
) -> str:
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    uri = lambda picture: "data:image/png;base64," + base64.b64encode(picture).decode()
    problem = bench.problem
    shown = {
        (row["sampler"], row["at"]): uri(_png(problem.picture(result.preview)))
        for row, result in zip(rows, results, strict=True)
        if result.preview is not None and np.isfinite(result.preview).all()
    }
    lasts = {row["settings"]["last"] for row in _done(rows) if row["distance"] is not None}
    references = {
        f"converged ODE{', denoised' if last == 'denoise' else ''}": uri(
            _png(problem.picture(bench.converged(bench.seeds[0], last)[0][: problem.preview]))
        )
        for last in sorted({"denoise" if last == "denoise" else "none" for last in lasts})
    }
    return page.render(
        summary=summary,
        rows=rows,
        samplers=list(dict.fromkeys(row["sampler"] for row in rows)),
        figure=figure,
        plots={name: uri(picture) for name, picture in plots.items()},
        pictures=shown,
        references=references | {problem.baseline: uri(_png(problem.picture(problem.data[: problem.preview])))},
        budgets=sorted(experiment.compare.nfe),
        factors=sorted(experiment.compare.tolerance_factors, reverse=True),
        command=experiment.command,
    )


def _png(picture: Picture) -> bytes:
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _text(bench: Bench, rows: list[dict[str, Any]]) -> str:
    """The first metric of every cell, as aligned text: a sampler a line."""
    name, measure = next(iter(bench.problem.measures.items()))
    about = f"{measure.better} is better; {bench.problem.baseline}: {figure(measure.baseline)}"
    head = f"{measure.title}, {bench.problem.measured} ({about})"
    lines = [head]
    width = max(len(row["sampler"]) for row in rows)
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == sampler]
        cells = [f"{row['at']}: {figure(row['scores'].get(name)) if row['scores'] else row['status']}" for row in own]
        lines.append(f"  {sampler.ljust(width)}  {'   '.join(cell.ljust(18) for cell in cells)}".rstrip())
    return "\n".join(lines)
