"""Whether the parts of an experiment go together: what no part can tell of itself."""

import functools
from collections.abc import Callable

from score_sde.data import augmentation
from score_sde.denoiser import TIMES_ALONE, check_levels
from score_sde.errors import Checks, UserError
from score_sde.experiment.base import Experiment
from score_sde.losses import Bound, Denoising, Sliced
from score_sde.samplers import Sampler
from score_sde.sde import SDE, check_kind

LEARN_VARIANCE = "set model.learned_variance to True (adm, dit, video_dit)"


def check(experiment: Experiment) -> None:
    """Raises UserError where what is chosen does not go together, or not in float32; names every problem."""
    parts: list[tuple[str, Callable[[Experiment], object]]] = [
        ("sde", lambda of: of.sde.check_float32()),
        ("sampling_sde", _check_sampling),
        ("parameterisation", lambda of: of.parameterisation.check(of.sde)),
        ("objective", lambda of: of.objective.check(of.sde)),
        ("objective", _check_objective),
        ("objective", _check_variance),
        ("weighting", lambda of: of.weighting.check(of.sde)),
        ("times", lambda of: of.times.distribution.check(of.sde)),
        ("model", _check_labels),
        ("optimiser", _check_optimiser),
        ("training", _check_augmentation),
        ("sampling", lambda of: of.sampling.label.check(of.architecture.classes)),
        ("evaluation", _check_average),
    ]
    for name, sampler in experiment.samplers.items():
        each = (_check_process, check_network)
        parts += [(f"samplers.{name}", functools.partial(agrees, sampler=sampler)) for agrees in each]
    problems = []
    for section, agrees in parts:
        try:
            agrees(experiment)
        except UserError as error:
            problems.append(f"{section}: {error}")
    if problems:
        raise UserError("config: " + "; ".join(dict.fromkeys(problems)))


def check_network(experiment: Experiment, sampler: Sampler) -> None:
    """Raises UserError where the sampler asks more of the network than it says."""
    if sampler.solver.learned_variance and not experiment.architecture.learns_step_variance:
        raise UserError(f"needs a network that learns the variances of steps: {LEARN_VARIANCE}; or use 'ancestral'")


def _check_process(experiment: Experiment, sampler: Sampler) -> None:
    sampler.check_process(experiment.sampling_sde)


def _check_variance(experiment: Experiment) -> None:
    learns = experiment.architecture.learns_step_variance
    with Checks() as check:
        affine = not learns or isinstance(experiment.sde, SDE)
        check.that(affine, f"model.learned_variance is for {SDE.kind}, not {experiment.sde.kind}: set it to False")
        if experiment.objective.learned_variance:
            needs = "'learned_variance' needs a network that learns the variances of steps"
            check.that(learns, f"{needs}: {LEARN_VARIANCE}")
            times = experiment.config["times"]["name"]
            check.that(times == "steps", f"'learned_variance' needs times.name 'steps', not {times!r}")


def _check_sampling(experiment: Experiment) -> None:
    if experiment.sampling.task != "generate":
        check_kind(f"sampling.task={experiment.sampling.task!r}", experiment.sde, SDE, "use 'generate'")
    if experiment.sampling_sde != experiment.sde:
        experiment.sampling_sde.check_float32()
        check_levels(experiment.sampling_sde, experiment.sde)


def _check_objective(experiment: Experiment) -> None:
    bound = isinstance(experiment.objective, Bound)
    with Checks() as check:
        weighting = experiment.config["weighting"]["name"]
        own = not bound or weighting == "vlb"
        check.that(own, f"'bound' is weighted by itself: set weighting.name to 'vlb', not {weighting!r}")
        variance = experiment.architecture.learns_log_variance
        used = not variance or isinstance(experiment.objective, Denoising)
        check.that(used, "the network's learned uncertainty is for 'denoising': set model.uncertainty_features to 0")
        sliced = isinstance(experiment.objective, Sliced)
        of_noise = not sliced or experiment.weighting.of == "epsilon"
        check.that(of_noise, f"'sliced' needs a weighting of the noise's error, as 'sigma2' is, not {weighting!r}")
        if experiment.sde.learned:
            times = experiment.config["times"]["name"]
            check.that(bound, "a learned process is trained on the bound: set objective.name to 'bound'")
            check.that(times == "uniform", f"a learned process needs times.name 'uniform', not {times!r}")
            condition = experiment.parameterisation.noise_condition
            of_level = condition not in TIMES_ALONE
            check.that(
                of_level,
                "a learned process needs a parameterisation.noise_condition that is a function of its noise level, "
                f"such as 'log_snr', not {condition!r}",
            )


def _check_labels(experiment: Experiment) -> None:
    classes, labels = experiment.architecture.classes, experiment.source.classes
    with Checks() as check:
        fits = classes in (0, labels)
        check.that(fits, f"classes must be 0 or the {labels} of the data, not {classes}")
        drop = experiment.training.label_drop
        check.that(not drop or classes > 0, f"training.label_drop={drop} needs a network with classes")


def _check_optimiser(experiment: Experiment) -> None:
    name = experiment.optimiser.name
    if name == "schedule_free" and experiment.architecture.projects:
        raise UserError(f"{name!r} averages parameters that this network moves after each update; use another")


def _check_augmentation(experiment: Experiment) -> None:
    p, told, shape = experiment.training.augment, experiment.architecture.augment_features, experiment.source.shape
    with Checks() as check:
        check.that(not p or len(shape) == 3, f"augment={p} is for images, not for samples of shape {shape}")
        mirrors = not experiment.training.flip or len(shape) >= 3
        check.that(mirrors, f"flip exchanges left and right of images, not of samples of shape {shape}")
        crop = experiment.training.crop
        crops = crop == 0 or (len(shape) == 3 and 0 < crop < min(shape[:2]))
        check.that(crops, f"crop must be 0, or for images less than their sides, not {crop} for shape {shape}")
        needed = augmentation.FEATURES
        takes = not p or told == needed
        check.that(takes, f"augment={p} is told to the network: it needs model.augment_features={needed}, not {told}")


def _check_average(experiment: Experiment) -> None:
    count, where = len(experiment.profiles()), "training.ema_half_lives and ema_lengths"
    if experiment.evaluation.ema >= count:
        raise UserError(f"ema={experiment.evaluation.ema} is none of the {count} averages in {where}")
