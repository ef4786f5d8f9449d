"""Pictures of an evaluation: samples, samples with their nearest training images, and figures over training."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import whole
from score_sde.evaluation.distances import nearest
from score_sde.evaluation.metrics import METRICS
from score_sde.experiment.base import Experiment
from score_sde.experiment.evaluating.figures import Reference, at_equal_n
from score_sde.experiment.evaluating.samples import Sampled
from score_sde.experiment.pictures import write_png
from score_sde.writers import write_atomically, write_json

SHOWN = 64
COLUMNS = 8
PAIRS = 16  # samples with their neighbours, in rows of COLUMNS


def galleries(experiment: Experiment, folder: Path, every: dict[str, Sampled], reference: Reference) -> None:
    """NAME.png of each sampler and real.png; NAME_nearest.png, whose every second row holds the nearest training images
    of the row above it, in the first extractor's features where those of the training data are at hand. In the place of
    those of an earlier evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    shown = experiment.shown(SHOWN)
    write_png(folder / "real.png", experiment.picture(whole(experiment.test_records, "image", shown), COLUMNS))
    train = reference.training()
    for name, found in every.items():
        write_png(folder / f"{name}.png", experiment.picture(found.first[:shown], COLUMNS))
        if train is None or len(experiment.source.shape) != 3 or found.failed:
            continue
        extractor = next(iter(reference.extractors))
        columns = min(COLUMNS, len(found.first))
        count = min(PAIRS, len(found.first)) // columns * columns
        _, index = nearest(found.features[extractor].features[:count], train.features, 1)
        near = experiment.train_records.gather(index[:, 0], ("image",))["image"]
        rows = []
        for start in range(0, count, columns):
            rows += [each[start : start + columns] for each in (found.first, near)]
        write_png(folder / f"{name}_nearest.png", experiment.picture(np.concatenate(rows), columns))


Line = list[tuple[int, float]]  # by step


def over_training(folder: Path, every: list[dict[str, Any]]) -> None:
    """curve.png, each metric by step, and best.json, the step and sampler that are best by each that ranks them: at the
    floor's n, with the floor beside. Left out are those of which too few samples came."""
    rows = {key: row for each in every for key, row in each["metrics"].items()}  # the last of each
    sizes, lines = {}, {}
    for key in rows:
        sizes[key], lines[key] = _by_step(every, key)
    best: dict[str, Any] = {}
    for key, row in rows.items():
        sign = 1 if row["better"] == "lower" else -1
        values = [(sign * value, step, name) for name, line in lines[key].items() for step, value in line]
        if METRICS[row["metric"]].ranks and values:
            value, step, name = min(values)
            told = {each: row[each] for each in ("title", "better", "extractor")}
            found = {"n": sizes[key], "value": sign * value, "step": step, "sampler": name}
            best[key] = told | found | {"real": row["real"]["value"]}
    write_json(folder / "best.json", best)
    if rows and len({each["step"] for each in every}) > 1:
        write_atomically(folder / "curve.png", lambda path: _draw(path, rows, sizes, lines))
    else:
        (folder / "curve.png").unlink(missing_ok=True)  # of other settings


def _by_step(every: list[dict[str, Any]], key: str) -> tuple[int, dict[str, Line]]:
    """n, and a metric's figures at it by sampler."""
    found = [
        (name, each["step"], *at_equal_n(each["metrics"][key], name))
        for each in every
        if key in each["metrics"]
        for name in each["samplers"]
    ]
    size = max(n for *_, n in found)
    lines: dict[str, Line] = {name: [] for name, *_ in found}
    for name, step, value, n in found:
        if value is not None and n == size:
            lines[name].append((step, value))
    return size, lines


def _draw(
    path: Path, rows: dict[str, dict[str, Any]], sizes: dict[str, int], lines: dict[str, dict[str, Line]]
) -> None:
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(4.6 * across, 3.2 * down), layout="constrained")
    for axes, (key, row) in zip(figure.subplots(down, across, squeeze=False).flat, rows.items(), strict=False):
        for name, line in lines[key].items():
            steps, values = ([point[part] for point in line] for part in (0, 1))
            axes.plot(steps, values, marker="o", markersize=3, linewidth=1.2, label=name)
        if row["real"]["value"] is not None:
            axes.axhline(row["real"]["value"], color="0.4", linestyle=":", label="real data")
        axes.set_title(textwrap.fill(f"{row['title']}, {row['better']} is better", 50), fontsize=10)
        of = f"n = {sizes[key]}" + (f", against {row['against']}" if row["against"] else "")
        axes.set_xlabel(f"step; {of}\n{textwrap.fill(row['extractor'], 60)}", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in figure.axes[len(rows) :]:
        axes.remove()
    figure.savefig(path, format="png", dpi=110)
