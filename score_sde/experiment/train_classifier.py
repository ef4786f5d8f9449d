"""--mode=train_classifier: trains the section `classifier`'s network to tell the labels of noisy images.

It is kept in `WORKDIR/classifier/`, a workdir of its own with checkpoints and metrics; those hold the accuracy on test
images too, over all times and in each quarter of [t_min, T]. The score network need not be trained.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from score_sde import rng
from score_sde.distributed.mesh import OverBatch, batch_shards, check_batch_size, compile_over_batch
from score_sde.errors import Checks, UserError
from score_sde.experiment.base import Experiment
from score_sde.experiment.train import Task, check_durations, fit
from score_sde.experiment.workdir import Workdir
from score_sde.losses.classification import ClassifierModel, classify
from score_sde.models import Classifier
from score_sde.sde import SDE, check_kind
from score_sde.training.classifier import make_classifier_step
from score_sde.training.interrupt import StopRequest
from score_sde.training.state import TrainState
from score_sde.typing import Params, Time
from score_sde.writers import MetricWriter, say

QUARTERS = 4
LARGEST_TEST = 4096  # images
TEST_BATCH = 256


def check(experiment: Experiment) -> None:
    """Raises UserError where there is nothing to classify, or it cannot be done as configured."""
    plan, labels, sde = experiment.classifier, experiment.source.classes, experiment.sde
    check_kind("train_classifier", sde, SDE, "use another process")
    with Checks() as checks:
        classes = plan.network.classes
        checks.that(labels > 1, "train_classifier needs data with labels")
        checks.that(labels <= 1 or classes == labels, f"classifier.classes must be the data's {labels}, not {classes}")
        checks.that(not sde.learned, "train_classifier needs a process that is not learned")
    check_batch_size(experiment.mesh, plan.training.batch_size, "classifier.batch_size")
    _ = experiment.train_records  # read before anything is written
    try:
        own = own_experiment(experiment)
        part = own.training.batch_size // own.training.accumulate
        check_batch_size(own.mesh, part, "batch_size/training.accumulate")
        check_durations(own)
        _model(experiment)
    except UserError as error:
        raise UserError(f"config: classifier: {error}") from error
    own.workdir.check(own_config(experiment), needs_checkpoint=False)


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Trains to the configured duration; does nothing if it is reached."""
    own, model = own_experiment(experiment), _model(experiment)
    own.workdir.create(own_config(experiment))
    optimiser, profiles = own.optimiser.build(own.learning_rate()), own.profiles()
    classifier = Classifier(own.classifier.network, own.source.shape)

    def init() -> TrainState:
        params = classifier.init(rng.stream(own.seed, "classifier parameters"))
        return TrainState.create(params, optimiser, profiles, own.times.distribution.init())

    step = make_classifier_step(
        model=model,
        times=own.times,
        optimiser=optimiser,
        levels=own.levels,
        profiles=profiles,
        seed=own.seed,
        flip=own.training.flip,
        crop=own.training.crop,
        accumulate=own.training.accumulate,
    )
    compiled: list[OverBatch] = []  # at the first call

    def right(*arguments: Any) -> np.ndarray:
        if not compiled:
            split = (False, True, True, True, True)
            compiled.append(compile_over_batch(own.mesh, functools.partial(_right, own, model), arguments, split))
        return compiled[0](*arguments)

    def preview(metrics: MetricWriter, at: int, averages: tuple[Params, ...]) -> None:
        figures = _accuracy(own, right, averages[own.evaluation.ema])
        metrics.scalars(at, figures)
        say(f"train_classifier: step {at}: accuracy on test images {figures['accuracy']:.3f}")

    fit(own, Task(init=init, step=step, fields=("image", "label"), preview=preview, at_end=True), stop)


def own_experiment(experiment: Experiment) -> Experiment:
    """The experiment whose training is the classifier's."""
    settings = experiment.classifier.training
    rate: dict[str, Any] = {"learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}
    return dataclasses.replace(
        experiment,
        home=Workdir(experiment.workdir.path / "classifier"),
        optimiser=dataclasses.replace(experiment.optimiser, name="adamw", schedule="constant", **rate),
        training=dataclasses.replace(
            experiment.training, batch_size=settings.batch_size, duration=settings.duration, label_drop=0.0
        ),
        classifies=True,
    )


def own_config(experiment: Experiment) -> dict[str, Any]:
    """What the classifier depends on: of these its workdir is. Its duration may change, as a training's may."""
    config = experiment.config
    classifier = dict(config["classifier"])
    kept = {key: config["training"][key] for key in ("ema_half_lives", "ema_lengths", "flip", "crop")}
    training = {"duration": classifier.pop("duration"), **kept}
    shared = {key: config[key] for key in ("seed", "data", "sde", "parameterisation", "times", "optimiser")}
    return {**shared, "model": classifier, "training": training}


def _model(experiment: Experiment) -> ClassifierModel:
    """The classifier on the experiment's process. Raises UserError where the two do not go together."""
    plan, sde = experiment.classifier, experiment.sde
    assert isinstance(sde, SDE)
    own = dataclasses.replace(experiment.parameterisation, noise_condition=plan.training.noise_condition)
    own.check(sde)
    apply = Classifier(plan.network, experiment.source.shape).apply
    return ClassifierModel(sde=sde, parameterisation=own, apply=apply)


def _right(
    experiment: Experiment,
    model: ClassifierModel,
    params: Params,
    images: Integer[Array, "batch *shape"],
    labels: Int[Array, "batch"],
    index: Int[Array, "batch"],
    t: Time,
) -> Bool[Array, "batch"]:
    """Whether each of the images, numbered `index`, is told right at its time t."""
    keys = rng.for_samples(rng.stream(experiment.seed, "classifier test"), index)
    x_0 = experiment.levels.dequantise(images, rng.child(keys, 0))
    logits = functools.partial(model.logits, params)
    return classify(logits, model.sde, x_0, labels, rng.child(keys, 1), t).correct


def _accuracy(experiment: Experiment, right: Any, params: Params) -> dict[str, float]:
    """The share of test images told right, at times spread evenly over [t_min, T], and in each quarter of it."""
    records, sde = experiment.test_records, experiment.sde
    shards = batch_shards(experiment.mesh)
    size = -(-TEST_BATCH // shards) * shards
    batches = -(-min(len(records), LARGEST_TEST) // size)
    index = np.arange(batches * size)
    place = np.random.default_rng(experiment.seed).permutation(len(index))  # of its time among them all
    t = sde.t_min + (sde.T - sde.t_min) * (place + 0.5) / len(index)
    found = []
    for each in np.split(index, batches):
        batch = records.gather(each % len(records))
        labels, times = batch["label"].astype(np.int32), t[each].astype(np.float32)
        found.append(right(params, batch["image"], labels, each.astype(np.int32), times))
    correct = np.concatenate(found).astype(np.float64)
    quarter = place * QUARTERS // len(index)
    shares = {f"accuracy_quarter_{number + 1}": correct[quarter == number].mean() for number in range(QUARTERS)}
    return {"accuracy": float(correct.mean()), **{name: float(share) for name, share in shares.items()}}
