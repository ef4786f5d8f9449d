"""Pictures of an evaluation: samples, samples with their nearest training images, and figures over training."""

from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import whole
from score_sde.evaluation.distances import nearest
from score_sde.experiment.base import Experiment
from score_sde.experiment.evaluating.figures import Reference
from score_sde.experiment.evaluating.samples import Sampled
from score_sde.experiment.pictures import write_png
from score_sde.writers import write_atomically, write_json

SHOWN = 64
COLUMNS = 8
PAIRS = 16  # samples with their neighbours, in rows of COLUMNS


def galleries(experiment: Experiment, folder: Path, every: dict[str, Sampled], reference: Reference) -> None:
    """NAME.png of each sampler and real.png; NAME_nearest.png, whose every second row holds the nearest training images
    of the row above it, in the first extractor's features where those of the training data are at hand."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = experiment.shown(SHOWN)
    write_png(folder / "real.png", experiment.picture(whole(experiment.test_records, "image", shown), COLUMNS))
    train = reference.training()
    for name, found in every.items():
        write_png(folder / f"{name}.png", experiment.picture(found.first[:shown], COLUMNS))
        if train is None or len(experiment.source.shape) != 3 or found.failed:
            continue
        extractor = next(iter(reference.extractors))
        _, index = nearest(found.features[extractor].features[:PAIRS], train.features, 1)
        near = experiment.train_records.gather(index[:, 0], ("image",))["image"]
        rows = []
        for start in range(0, len(near), COLUMNS):
            rows += [found.first[start : min(start + COLUMNS, len(near))], near[start : start + COLUMNS]]
        if all(len(row) == COLUMNS for row in rows):
            write_png(folder / f"{name}_nearest.png", experiment.picture(np.concatenate(rows), COLUMNS))


def over_training(folder: Path, every: list[dict[str, Any]]) -> None:
    """curve.png, each metric by step, and best.json, the step and sampler that are best by each."""
    keys = list(dict.fromkeys(key for each in every for key in each["metrics"]))
    best: dict[str, Any] = {}
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key in keys:
        of = [(each, each["metrics"][key]) for each in every if key in each["metrics"]]
        own: dict[str, list[tuple[int, float]]] = {}
        for each, row in of:
            for name in each["samplers"]:
                own.setdefault(name, []).append((each["step"], row[name]["whole"]["value"]))
        sign = 1 if of[-1][1]["better"] == "lower" else -1
        value, step, name = min((sign * value, step, name) for name, line in own.items() for step, value in line)
        best[key] = {"title": of[-1][1]["title"], "value": sign * value, "step": step, "sampler": name}
        lines[key] = own
    write_json(folder / "best.json", best)
    if keys and len({each["step"] for each in every}) > 1:
        write_atomically(
            folder / "curve.png", lambda path: _draw(path, lines, {key: best[key]["title"] for key in keys})
        )


def _draw(path: Path, lines: dict[str, dict[str, list[tuple[int, float]]]], titles: dict[str, str]) -> None:
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    columns = min(3, len(lines))
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for axes, (key, own) in zip(figure.subplots(rows, columns, squeeze=False).flat, lines.items(), strict=False):
        for name, line in own.items():
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, linewidth=1.2, label=name)
        axes.set_title(titles[key], fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(own) > 1:
            axes.legend(fontsize=8)
    for axes in figure.axes[len(lines) :]:
        axes.remove()
    figure.savefig(path, format="png", dpi=110)
