"""The summary and the one-page report of a run.

`reports/summary.json` collects the figures; `reports/report.html` shows them with sample grids and the loss curve.
The page holds its pictures itself and opens without a network.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from score_sde.experiment import likelihood, sample
from score_sde.experiment.base import Experiment
from score_sde.experiment.pictures import grid, write_png
from score_sde.writers import read_metrics, say, write_atomically, write_json

TEMPLATE = Path(__file__).with_name("report.html.jinja")
GRID_IMAGES = 64
COLUMNS = 8


def write(experiment: Experiment, step: int) -> None:
    """From `reports/evaluation.json`, `reports/likelihood.json`, the samples and `metrics.jsonl`; prints the table."""
    summary = _summary(experiment, step)
    write_json(experiment.workdir.reports / "summary.json", summary)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    html = page.render(
        summary=summary,
        figure=_figure,
        likelihood_title=likelihood.title,
        noise_title=likelihood.noise_title,
        pictures=_pictures(experiment, step),
        curve=_loss_curve(experiment.workdir.path / "metrics.jsonl"),
        command=experiment.command,
        config=json.dumps(experiment.config, indent=2),
    )
    path = experiment.workdir.reports / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(html))
    say(table(summary))
    say(f"report: {path}")


def table(summary: dict[str, Any]) -> str:
    """The samplers, real data and noise, as aligned text."""
    metrics = summary["metrics"]
    head = ["", *(f"{metric['title']} ({metric['better']} is better)" for metric in metrics.values()), "NFE", "seconds"]
    rows = [head]
    for row in summary["rows"]:
        cost = [f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"] if "seconds" in row else ["", ""]
        rows.append([row["title"], *(_figure(row["scores"][name]) for name in metrics), *cost])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{row['failed']} samples of {row['name']} failed" for row in summary["rows"] if row.get("failed")]
    bits = summary["likelihood"]
    if bits:
        lines.append(
            f"likelihood: {likelihood.line(bits)}; {likelihood.noise_title(bits)} "
            f"{bits['noise']['bits_per_dim']:.2f}, uniform over the levels {bits['uniform']:.3f}"
        )
    return "\n".join(lines)


def _summary(experiment: Experiment, step: int) -> dict[str, Any]:
    evaluation = json.loads((experiment.workdir.reports / "evaluation.json").read_text())
    metrics = evaluation["metrics"]
    scores = lambda key: {name: metric[key] for name, metric in metrics.items()}
    rows: list[dict[str, Any]] = []
    for name in experiment.samplers:
        arrays = sample.read(experiment, name, sample.record_of(experiment, step, name))
        assert arrays is not None  # evaluation read it a moment ago
        record = json.loads(str(arrays["record"]))
        label = {} if record["label"] == "none" else {"label": record["label"]}
        rows.append(
            {
                "name": name,
                "title": name,
                "scores": scores(name),
                "evaluations": float(arrays["evaluations"].mean()),
                "seconds": float(arrays["seconds"]),
                "compile_seconds": float(arrays["compile_seconds"]),
                "num_samples": record["num_samples"],
                "failed": int(arrays["failed"]),
                "settings": record["settings"] | label,
            }
        )
    rows.append({"name": "real", "title": "real test data", "scores": scores("real")})
    rows.append({"name": "noise", "title": "pure noise", "scores": scores("noise")})
    bits = likelihood.read(experiment, step)
    titles = {name: {"title": metric["title"], "better": metric["better"]} for name, metric in metrics.items()}
    return {
        "step": step,
        "source": experiment.config["data"]["source"],
        "images": evaluation["images"],
        "metrics": titles,
        "rows": rows,
        "likelihood": bits,
    }


def _figure(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return "–"
    text = f"{value['value']:.3f}"
    return text if value["spread"] is None else f"{text} ± {value['spread']:.3f}"


def _pictures(experiment: Experiment, step: int) -> list[tuple[str, str]]:
    """(title, data URI) of each sampler's first images and of real ones."""
    shown = []
    for name in experiment.samplers:
        arrays = sample.read(experiment, name, sample.record_of(experiment, step, name))
        assert arrays is not None
        shown.append((name, arrays["image"]))
    shown.append(("real test data", experiment.test_records.arrays["image"]))
    pictures = []
    for title, images in shown:
        picture = grid(experiment.to_uint8(np.asarray(images[:GRID_IMAGES])), columns=COLUMNS)
        path = experiment.workdir.reports / ".picture.png"
        write_png(path, picture)
        pictures.append((title, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()))
        path.unlink()
    return pictures


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
