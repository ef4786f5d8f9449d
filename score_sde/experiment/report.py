"""The summary and the one-page report of a run.

`reports/summary.json` collects the figures; `reports/report.html` shows them with pictures of samples and the curves
of training.
The page holds its pictures itself and opens without a network.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2

from score_sde.experiment import likelihood
from score_sde.experiment.base import Experiment
from score_sde.writers import read_metrics, say, write_atomically, write_json

TEMPLATE = Path(__file__).with_name("report.html.jinja")
TIMES = ("seconds", "compile_seconds")  # of the likelihood


def write(experiment: Experiment, step: int, evaluation: dict[str, Any]) -> None:
    """From the figures of an evaluation, its pictures, `reports/likelihood.json` and `metrics.jsonl`; prints the table.

    The summary has no times in it: the same model gives the same summary.
    """
    summary = _summary(experiment, step, evaluation)
    costs = {name: each["seconds"] for name, each in evaluation["samplers"].items()}
    write_json(experiment.workdir.reports / "summary.json", summary)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    groups: dict[str, list[str]] = {}  # of metrics that were taken of the same
    for name, metric in summary["metrics"].items():
        groups.setdefault(against(metric), []).append(name)
    html = page.render(
        summary=summary,
        figure=_figure,
        groups=groups,
        costs=evaluation["samplers"],
        timed=likelihood.read(experiment, step),
        over_training=_embedded(experiment.workdir.reports / "evaluation" / "curve.png"),
        likelihood_title=likelihood.title,
        noise_title=likelihood.noise_title,
        pictures=_pictures(experiment, step, evaluation),
        curve=_loss_curve(experiment.workdir.path / "metrics.jsonl"),
        command=experiment.command,
        config=json.dumps(experiment.config, indent=2),
    )
    path = experiment.workdir.reports / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(html))
    say(table(summary, costs))
    say(f"report: {path}")


def table(summary: dict[str, Any], seconds: dict[str, float]) -> str:
    """A row a metric, with the samplers, real data and noise beside one another, as aligned text. seconds: of each
    sampler."""
    columns, metrics = summary["rows"], summary["metrics"]
    rows = [["", *(column["title"] for column in columns)]]
    for name, metric in metrics.items():
        title = f"{metric['title']}, {metric['better']} is better"
        rows.append([title, *(_figure(column["scores"][name], or_all=True) for column in columns)])
    samplers = [column for column in columns if column["name"] in seconds]
    rows.append(["NFE", *(f"{column['evaluations']:.0f}" for column in samplers)])
    rows.append(["seconds", *(f"{seconds[column['name']]:.1f}" for column in samplers)])
    rows = [row + [""] * (len(rows[0]) - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{column['failed']} samples of {column['name']} failed" for column in samplers if column["failed"]]
    lines += list(dict.fromkeys(map(against, metrics.values())))
    bits = summary["likelihood"]
    if bits:
        lines.append(
            f"likelihood: {likelihood.line(bits)}; {likelihood.noise_title(bits)} "
            f"{bits['noise']['bits_per_dim']:.2f}, uniform over the levels {bits['uniform']:.3f}"
        )
    return "\n".join(lines)


def against(metric: dict[str, Any]) -> str:
    """What a metric was taken of."""
    if metric["n"] is None:
        return f"{metric['extractor']}; against statistics without samples"
    compared = f", against {metric['against']}" if metric["against"] else ""
    return f"{metric['extractor']}; n = {metric['n']}{compared}"


def _summary(experiment: Experiment, step: int, evaluation: dict[str, Any]) -> dict[str, Any]:
    metrics = evaluation["metrics"]
    scores = lambda key: {name: metric[key] for name, metric in metrics.items()}
    rows: list[dict[str, Any]] = []
    for name, sampler in evaluation["samplers"].items():
        rows.append(
            {
                "name": name,
                "title": name,
                "scores": scores(name),
                "evaluations": sampler["evaluations"],
                "num_samples": evaluation["samples"],
                "failed": sampler["failed"],
                "settings": sampler["settings"],
                "classes": sampler["classes"],
            }
        )
    rows.append({"name": "real", "title": "real data", "scores": scores("real")})
    rows.append({"name": "noise", "title": "pure noise", "scores": scores("noise")})
    bits = likelihood.read(experiment, step)
    told = ("title", "better", "extractor", "against", "n")
    return {
        "step": step,
        "source": experiment.config["data"]["source"],
        "reference": evaluation["reference"],
        "metrics": {name: {key: metric[key] for key in told} for name, metric in metrics.items()},
        "rows": rows,
        "likelihood": bits and {key: value for key, value in bits.items() if key not in TIMES},
    }


def _figure(value: dict[str, Any], *, or_all: bool = False) -> str:
    """Of n samples, or where there is none, and `or_all`, of all."""
    if value["value"] is None:
        return f"all: {value['whole']['value']:.3f}" if or_all and "whole" in value else "–"
    text = f"{value['value']:.3f}"
    return text if value["spread"] is None else f"{text} ± {value['spread']:.3f}"


def _pictures(experiment: Experiment, step: int, evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, data URI) of each sampler's first images, of real ones, and of samples above their nearest neighbours."""
    folder = experiment.workdir.reports / "evaluation" / f"{step:08d}"
    names = evaluation["samplers"]
    shown = [*((name, name) for name in names), ("real test data", "real")]
    shown += [(f"{name}, each second row the nearest training images", f"{name}_nearest") for name in names]
    found = [(title, _embedded(folder / f"{file}.png")) for title, file in shown]
    return [(title, picture) for title, picture in found if picture is not None]


def _embedded(path: Path) -> str | None:
    """A picture as data URI, None where there is none."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _loss_curve(path: Path) -> str:
    """The logged loss by step, as a data URI of an SVG."""
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    lines = [line for line in read_metrics(path) if isinstance(line.get("loss"), int | float)]
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color="#24527a", linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
