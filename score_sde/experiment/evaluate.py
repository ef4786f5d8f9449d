"""--mode=evaluate: scores the samples of each sampler against the test split; writes the summary and the report.

`reports/evaluation.json` holds, for each metric, the score of every sampler, of real test data and of pure noise,
all at the same number of images.
"""

from typing import Any

import jax
import numpy as np

from score_sde.errors import Checks
from score_sde.evaluation.metrics import METRICS, Reference, Score, as_unit, noise_images, real_score, score
from score_sde.experiment import report, sample
from score_sde.experiment.base import Experiment
from score_sde.training.interrupt import StopRequest
from score_sde.writers import write_json


def check(experiment: Experiment) -> None:
    """Raises UserError where there is too little to score, or a metric's labels are missing."""
    with Checks() as check:
        enough = experiment.sampling.num_samples >= 2
        check.that(enough, "sampling.num_samples must be at least 2 to evaluate samples, not 1")
        for name in experiment.evaluation.metrics:
            labelled = not METRICS[name].needs_labels or "label" in experiment.train_records.arrays
            check.that(labelled, f"evaluation.metrics: {name!r} needs data with labels")


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Samples first where samples of the newest checkpoint are missing."""
    experiment, step, params = experiment.restore()
    sample.generate(experiment, step, params, stop)
    levels = experiment.source.levels
    size = experiment.sampling.num_samples
    reference = Reference.of(experiment.train_records, experiment.test_records, levels, size)
    noise = noise_images(experiment.source.shape, levels, 2 * reference.size)
    images = {"noise": as_unit(noise, levels)}
    for name in experiment.samplers:
        arrays = sample.read(experiment, name, sample.record_of(experiment, step, name))
        assert arrays is not None  # made, or found, by sample.generate above
        finite = np.isfinite(arrays["samples"]).reshape(size, -1).all(axis=1)  # failed samples are no images
        images[name] = as_unit(arrays["image"][finite], levels)
    scores: dict[str, Any] = {}
    for metric_name in experiment.evaluation.metrics:
        metric = METRICS[metric_name]
        values = {name: score(metric, each, reference) for name, each in images.items()}
        values["real"] = real_score(metric, reference)
        scores[metric_name] = {"title": metric.title, "better": metric.better} | {
            name: _plain(value) for name, value in values.items()
        }
    if jax.process_index() == 0:
        figures = {"step": step, "images": reference.size, "metrics": scores}
        write_json(experiment.workdir.reports / "evaluation.json", figures)
        report.write(experiment, step)


def _plain(value: Score) -> dict[str, float | None]:
    return {"value": value.value, "spread": value.spread}
