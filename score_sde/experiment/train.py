"""--mode=train: trains, or goes on training, and saves checkpoints, metrics and sample grids."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from score_sde import rng
from score_sde.checkpoint import Checkpoints
from score_sde.data import Prefetched
from score_sde.distributed.chips import peak_flops
from score_sde.distributed.mesh import OverBatch, batch_shards, by_batch, compile_over_batch, told
from score_sde.distributed.sharding import overview
from score_sde.errors import UserError
from score_sde.experiment.base import Experiment, sample_indices
from score_sde.experiment.flops import step_flops
from score_sde.experiment.pictures import write_png
from score_sde.samplers import DDIM, SSCS, Plan, Sampler
from score_sde.sde import CLD, SDE
from score_sde.training.interrupt import StopRequest
from score_sde.training.loop import Every, train
from score_sde.training.profiling import Clock, Profiler
from score_sde.training.state import Averages, TrainState
from score_sde.training.step import make_step, several
from score_sde.typing import Params
from score_sde.writers import MetricWriter, say

PREVIEWS: dict[type, Sampler] = {  # the first whose kind the process is of
    SDE: Sampler(solver=DDIM(), steps=20, last="denoise"),
    CLD: Sampler(solver=SSCS(), steps=40, last="denoise"),
}
PREVIEW_IMAGES = 64


def check(experiment: Experiment) -> None:
    """Raises UserError where part of the training would be of no use, or there are no data for it."""
    optimiser, duration = experiment.optimiser, experiment.training.duration
    if not len(experiment.train_records):
        raise UserError("data: there are no training records")
    check_durations(experiment)
    experiment.steps(optimiser.warmup)
    if optimiser.schedule == "cosine" and experiment.training_steps > experiment.steps(optimiser.decay):
        raise UserError(
            f"training.duration='{duration}' goes on after optimiser.decay='{optimiser.decay}', where the "
            "learning rate of schedule 'cosine' is 0; lengthen the decay (in a new workdir) or shorten the training"
        )


def check_durations(experiment: Experiment) -> None:
    """Raises UserError where they do not fit each other, or what a step counter holds, or the trace is of no step."""
    _every(experiment)
    traced, total = experiment.profile.steps, experiment.training_steps
    if traced and traced[0] > total:
        steps = ",".join(map(str, traced))
        raise UserError(f"profile.steps={steps} begins after the last of {total} steps; trace an earlier one")


class Task(NamedTuple):
    """What is trained.

    init: makes the state at step 0; traceable. step: to be compiled. fields: of the batches. preview(metrics, step,
    averages): shows what was learned, every `training.sample_every`, and after the last step where `at_end`. snapshots:
    whether averages are kept for --mode=ema. flops: of a step.
    """

    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], TrainState]
    fields: tuple[str, ...]
    preview: Callable[[MetricWriter, int, tuple[Params, ...]], None]
    at_end: bool = False
    snapshots: bool = False
    flops: Callable[[], int] = lambda: 0


def run(experiment: Experiment, stop: StopRequest) -> None:
    """Trains to the configured duration; does nothing if it is reached."""
    preview = _preview(experiment)
    task = Task(
        experiment.init_state,
        step_of(experiment),
        fields(experiment),
        preview,
        snapshots=True,
        flops=functools.partial(step_flops, experiment),
    )
    fit(experiment, task, stop)


def fields(experiment: Experiment) -> tuple[str, ...]:
    """Of the batches that the network is trained on."""
    return ("image", "label") if experiment.conditional else ("image",)


def fit(experiment: Experiment, task: Task, stop: StopRequest) -> None:
    """Trains, or goes on, in the experiment's workdir, for its duration and with its batch size and learning rate."""
    checkpoints = experiment.open_checkpoints(read_only=False)
    try:
        with experiment.batches(task.fields) as batches:
            _fit(experiment, task, checkpoints, batches, stop)
    finally:
        checkpoints.close()


def _fit(experiment: Experiment, task: Task, checkpoints: Checkpoints, batches: Prefetched, stop: StopRequest) -> None:
    total = experiment.training_steps
    state = _initial(experiment, task, checkpoints, batches)
    done = int(state.step)
    if done >= total:  # said of what could be restored: a damaged last checkpoint is trained again
        say(f"train: already at step {done} of {total}")
        return
    metrics = MetricWriter(experiment.workdir.path, resumed_at=done)
    try:
        state = train(
            state,
            batches,
            compile_step(experiment, several(task.step), jax.eval_shape(task.init)),
            steps_per_call=experiment.training.steps_per_call,
            every=_every(experiment),
            checkpoints=checkpoints,
            metrics=metrics,
            learning_rate=jax.jit(experiment.learning_rate()),
            preview=functools.partial(task.preview, metrics),
            snapshot=functools.partial(_snapshot, experiment) if task.snapshots else lambda _: None,
            clock=_clock(experiment, task),
            profiler=Profiler(experiment.profile, experiment.workdir.profile, resumed_at=done),
            stop=stop,
        )
        if task.at_end:
            task.preview(metrics, total, state.ema)
    finally:
        metrics.close()


def _clock(experiment: Experiment, task: Task) -> Clock:
    """With the step's FLOPs where those of the devices are known."""
    peak = sum(map(peak_flops, experiment.mesh.devices.flat))
    return Clock(batch_size=experiment.training.batch_size, flops=task.flops() if peak else 0, peak=peak)


def _every(experiment: Experiment) -> Every:
    settings = experiment.training
    durations = (settings.log_every, settings.sample_every, settings.save_every, settings.ema_snapshot_every)
    log, sample, save, snapshot = (max(1, experiment.steps(duration)) for duration in durations)
    keep = experiment.steps(settings.keep_every)
    if keep % save:
        wrong = f"training.keep_every='{settings.keep_every}' is {keep} steps, no multiple of the {save} of save_every"
        raise UserError(f"{wrong}; the nearest is {max(save, round(keep / save) * save)} steps")
    snapshot = snapshot if settings.ema_lengths else 0
    return Every(log=log, sample=sample, save=save, snapshot=snapshot, total=experiment.training_steps)


def _snapshot(experiment: Experiment, state: TrainState) -> None:
    """Keeps the averages that have lengths, unless an earlier run of the same steps did."""
    count = len(experiment.training.ema_lengths)
    snapshots = experiment.open_averages(experiment.workdir.snapshots, read_only=False)
    try:
        if int(state.step) not in snapshots.steps():
            snapshots.save(Averages(state.step, state.ema[-count:]), None)
    finally:
        snapshots.close()


def _initial(experiment: Experiment, task: Task, checkpoints: Checkpoints, batches: Prefetched) -> TrainState:
    """The newest checkpoint's state, with `batches` put where it was, or a new one created sharded."""
    restored = checkpoints.restore(experiment.abstract_state(task.init))
    if restored is not None:
        if restored.data is not None:  # an imported checkpoint has no place in the data yet
            batches.restore(restored.data)
        if int(restored.state.step) < experiment.training_steps:
            say(f"train: going on from step {int(restored.state.step)} of {experiment.training_steps}")
        return restored.state
    experiment.workdir.set_aside()
    # It runs once: on a CPU most of its time would go into optimising it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    shardings = experiment.shardings(jax.eval_shape(task.init))
    state = jax.jit(task.init, out_shardings=shardings, compiler_options=options)()
    say(overview(state.params))
    for line in experiment.layout.lines():
        say(f"train: {line}")
    return state


def step_of(experiment: Experiment) -> Callable[[TrainState, Any], TrainState]:
    """The training step, to be compiled."""
    return make_step(
        model=experiment.model,
        objective=experiment.objective,
        weighting=experiment.weighting,
        times=experiment.times,
        optimiser=experiment.optimiser.build(experiment.learning_rate()),
        levels=experiment.levels,
        profiles=experiment.profiles(),
        label_drop=experiment.training.label_drop,
        seed=experiment.seed,
        flip=experiment.training.flip,
        crop=experiment.training.crop,
        augment=experiment.training.augment,
        accumulate=experiment.training.accumulate,
    )


def compile_step(experiment: Experiment, step: Callable[[TrainState, Any], TrainState], state: TrainState) -> Any:
    """The step for the experiment's mesh, to be compiled at its first call. state: its shapes, of which `step` is."""
    laid_out = experiment.shardings(state)
    in_shardings = (laid_out, by_batch(experiment.mesh))
    return jax.jit(told(experiment.mesh, step), in_shardings=in_shardings, out_shardings=laid_out, donate_argnums=0)


def _preview(experiment: Experiment) -> Callable[[MetricWriter, int, tuple[Params, ...]], None]:
    """Samples of a few steps from the averaged parameters, always from the same noise."""
    sampler = next(each for kind, each in PREVIEWS.items() if isinstance(experiment.sde, kind))

    shards = batch_shards(experiment.mesh)
    count = experiment.shown(PREVIEW_IMAGES)
    index = sample_indices(0, -(-count // shards) * shards)

    def sample(params: Params, plan: Plan, index: jax.Array) -> jax.Array:
        keys = rng.for_samples(rng.stream(experiment.seed, "preview"), index)
        x = sampler(experiment.denoiser(params), plan, keys, experiment.source.shape).x
        return experiment.levels.quantise(x)

    compiled: list[OverBatch] = []  # at the first call

    def preview(metrics: MetricWriter, step: int, averages: tuple[Params, ...]) -> None:
        params = averages[experiment.evaluation.ema]
        arguments = (params, sampler.plan(experiment.learned(params).sde), index)
        if not compiled:
            compiled.append(compile_over_batch(experiment.mesh, sample, arguments, (False, False, True)))
        picture = experiment.picture(compiled[0](*arguments)[:count])
        if jax.process_index() != 0:
            return
        folder = experiment.workdir.samples / "training"
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"step_{step:08d}.png", picture)
        metrics.image(step, "samples", picture)

    return preview
