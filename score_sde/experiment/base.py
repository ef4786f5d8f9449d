"""An experiment: the objects that a config describes, and what all modes do with them."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Integer

from score_sde import rng
from score_sde.checkpoint import Checkpoints
from score_sde.data import InWorkers, Levels, Prefetched, Records, Source, iterate, whole
from score_sde.denoiser import Model, Parameterisation, check_levels
from score_sde.distributed.mesh import own_rows, put_batch
from score_sde.distributed.sharding import Layout
from score_sde.errors import UserError
from score_sde.evaluation.extractors import Settings as ExtractorSettings
from score_sde.evaluation.metrics import Settings as MetricSettings
from score_sde.experiment import pictures
from score_sde.experiment.pictures import Picture
from score_sde.experiment.settings import Compare, Evaluation, Likelihood, Planning, Sampling
from score_sde.experiment.workdir import Workdir, fixed
from score_sde.losses import Objective, Times, Weighting
from score_sde.models import Classifier, Network
from score_sde.models.functional import Settings as Architecture
from score_sde.samplers import Sampler
from score_sde.sde import Process
from score_sde.training.classifier import ClassifierPlan
from score_sde.training.duration import Duration
from score_sde.training.ema import Exponential, Power, Profile
from score_sde.training.loop import Training
from score_sde.training.optimiser import Optimiser
from score_sde.training.profiling import ProfileSettings
from score_sde.training.state import TrainState
from score_sde.training.step import NO_LABEL
from score_sde.typing import Condition, Params
from score_sde.writers import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a mode needs. config: the resolved config, plain data; command: what was typed.

    home: the workdir, None in a mode that may go without and was given none. classifies: whether what is trained is the
    classifier, as `train_classifier.own_experiment` gives it. weights: the checksum of the averaged parameters that
    `restore` gave with it."""

    config: dict[str, Any]
    command: str
    home: Workdir | None
    seed: int
    mesh: Mesh
    source: Source
    sde: Process
    architecture: Architecture
    parameterisation: Parameterisation
    objective: Objective
    weighting: Weighting
    times: Times
    optimiser: Optimiser
    training: Training
    classifier: ClassifierPlan
    sampling: Sampling
    sampling_sde: Process
    samplers: dict[str, Sampler]
    likelihood: Likelihood
    evaluation: Evaluation
    metrics: MetricSettings
    extractors: dict[str, ExtractorSettings]
    compare: Compare
    plan: Planning
    profile: ProfileSettings
    compared: dict[str, Sampler]
    without_grid: frozenset[str]  # of those to compare, whose section chooses no grid
    classifies: bool = False
    weights: int = 0

    @property
    def workdir(self) -> Workdir:
        """Where everything of this run is kept."""
        assert self.home is not None
        return self.home

    @functools.cached_property
    def network(self) -> Network:
        """For the data and the process. Raises UserError where the architecture is not for these."""
        return Network(self.architecture, self.sde.state_shape(self.source.shape))

    @property
    def levels(self) -> Levels:
        """How the data are scaled."""
        return Levels(self.source.levels, *self.source.range)

    @property
    def dimensions(self) -> int:
        """Values of one sample."""
        return math.prod(self.source.shape)

    @property
    def conditional(self) -> bool:
        """Whether the network takes labels."""
        return self.architecture.classes > 0

    def condition(self, label: Int[Array, "batch"]) -> Condition:
        """What the network is told of samples with these labels, `NO_LABEL` for none; None where it takes none."""
        return {"label": label} if self.conditional else None

    def labels_of(self, records: Records) -> Integer[np.ndarray, "n"]:
        """The records' labels; `NO_LABEL` for each where the network takes none."""
        own = whole(records, "label") if self.conditional else np.full(len(records), NO_LABEL)
        return own.astype(np.int32)

    @functools.cached_property
    def train_records(self) -> Records:
        return self.source.split("train")

    @functools.cached_property
    def test_records(self) -> Records:
        return self.source.split("test")

    @property
    def training_steps(self) -> int:
        """The step at which training ends."""
        return self.steps(self.training.duration)

    def steps(self, duration: Duration) -> int:
        """A duration in training steps."""
        steps = duration.steps(self.training.batch_size, self._records(duration))
        if steps >= 2**31:
            raise UserError(f"'{duration}' are {steps:.3g} training steps, more than a counter of 32 bits holds")
        return steps

    def learning_rate(self) -> Any:
        """The learning rate by step."""
        return self.optimiser.rate(self.steps(self.optimiser.warmup), self.steps(self.optimiser.decay))

    def init_state(self) -> TrainState:
        """The training state at step 0. Traceable."""
        params = {"network": self.network.init(rng.stream(self.seed, "parameters"))}
        if self.sde.learned:
            params["process"] = self.sde.init()
        optimiser = self.optimiser.build(self.learning_rate())
        return TrainState.create(params, optimiser, self.profiles(), self.times.distribution.init())

    def profiles(self) -> list[Profile]:
        """Those of the averages."""
        batch_size, durations = self.training.batch_size, self.training.ema_half_lives
        half_lives = [duration.exact_steps(batch_size, self._records(duration)) for duration in durations]
        return [*map(Exponential, half_lives), *map(Power, self.training.ema_lengths)]

    @property
    def average(self) -> str:
        """What the average that is used is called: its half-life, or its length."""
        if self.evaluation.ema_length:
            return f"length {self.evaluation.ema_length:g} by --mode=ema"
        lengths = [f"length {length:g}" for length in self.training.ema_lengths]
        return [*map(str, self.training.ema_half_lives), *lengths][self.evaluation.ema]

    def _records(self, duration: Duration) -> int:
        """The number of training records, which only epochs ask for: what needs no data works without them."""
        return len(self.train_records) if duration.unit == "epochs" else 0

    def abstract_state(self, init: Callable[[], TrainState] | None = None) -> TrainState:
        """Shapes, dtypes and shardings of the state that `init` makes, by default `init_state`; computes nothing."""
        state = jax.eval_shape(init or self.init_state)
        laid_out = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.tree.map(laid_out, state, self.shardings(state))

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the parameters of what is trained lie on the mesh."""
        if self.classifies:
            return Layout.of(self.mesh, Classifier(self.classifier.network, self.source.shape).parameters())
        own = {("network", *path): parameter for path, parameter in self.network.parameters().items()}
        return Layout.of(self.mesh, own)

    def shardings(self, state: TrainState) -> TrainState:
        """The sharding of each leaf of a training state, of which shapes are enough."""
        return self.layout.shardings(state)

    def batches(self, fields: tuple[str, ...]) -> Prefetched:
        """The training batches, split over the mesh, in the order that the seed gives. To be closed after use."""
        size, count, records = self.training.batch_size, self.training.workers, self.train_records
        workers = InWorkers(records, count) if count else None
        batches = iterate(workers or records, size, self.seed, own_rows(self.mesh, size), fields, at_once=count)
        put = lambda batch: put_batch(self.mesh, batch, size)
        return Prefetched(batches, put, close=workers.close if workers else lambda: None)

    def open_checkpoints(self, *, read_only: bool) -> Checkpoints:
        training = self.training
        return Checkpoints(
            self.workdir.checkpoints,
            keep=training.keep_checkpoints,
            every=0 if read_only else self.steps(training.keep_every),
            read_only=read_only,
            warn=say,
        )

    def open_averages(self, path: Path, *, read_only: bool) -> Checkpoints:
        """Checkpoints of averages alone: `training.state.Averages`."""
        return Checkpoints(path, keep=None, read_only=read_only, warn=say)

    def check_average(self) -> None:
        """Raises UserError where --mode=ema has yet to make the average that is asked for."""
        length = self.evaluation.ema_length
        path = self.workdir.average(length)
        if length and not (path.is_dir() and any(path.iterdir())):
            raise UserError(f"evaluation.ema_length={length:g}: run with --mode=ema --ema.length={length:g} first")

    @property
    def model(self) -> Model:
        """The process, the network and how it is used."""
        return Model(
            sde=self.sde,
            parameterisation=self.parameterisation,
            apply=self.network.apply,
            log_variance=self.network.log_variance,
            project=self.network.project,
        )

    def denoiser(self, params: Params) -> Any:
        """The trained denoiser, for inference."""
        return self.model.denoiser(params)

    def sampling_denoiser(self, params: Params) -> Any:
        """The trained denoiser on the process that is sampled with. Of an experiment as `restore` gives it."""
        # Without the parameters of a learned process: self.sde has them, known ahead, so that levels can be compared.
        return self.model.denoiser({"network": params["network"]}).on(self.sampling_sde)

    def open_used(self) -> Checkpoints:
        """The checkpoints that modes beside training use: the training's, or what `evaluation.ema_length` asks for."""
        if self.evaluation.ema_length:
            return self.open_averages(self.workdir.average(self.evaluation.ema_length), read_only=True)
        return self.open_averages(self.workdir.checkpoints, read_only=True)

    def restore(self, step: int | None = None) -> tuple["Experiment", int, Params]:
        """(the experiment that knows them, its process as learned; step; averaged parameters) of the newest sound
        checkpoint, or of that of `step`.

        Of what --mode=ema made of the snapshots, where `evaluation.ema_length` asks for it. Raises UserError where
        there is none.
        """
        length, target, place = self.evaluation.ema_length, self.abstract_state().ema, self.evaluation.ema
        if length:
            self.check_average()
            target, place = target[:1], 0
        checkpoints = self.open_used()
        try:
            found = checkpoints.restore_ema(target) if step is None else checkpoints.restore_ema_at(step, target)
        finally:
            checkpoints.close()
        params = found.params[place]
        return self.learned(params)._with(weights=found.checksum), found.step, params

    def learned(self, params: Params) -> "Experiment":
        """The experiment with a learned process fixed at `params`, so that time grids can be built ahead.

        Raises UserError where it has learned other noise levels than `sampling_sde` needs.
        """
        if not self.sde.learned:
            return self
        process = jax.device_get(params["process"])
        sde, sampling = self.sde.bind(process), self.sampling_sde.bind(process)
        try:
            if sampling != sde:
                check_levels(sampling, sde)
        except UserError as error:
            raise UserError(f"config: sampling_sde: {error}") from error
        return self._with(sde=sde, sampling_sde=sampling)

    def _with(self, **changes: Any) -> "Experiment":
        """With these fields, and the records that are open."""
        changed = dataclasses.replace(self, **changes)
        for name in {"train_records", "test_records"} & vars(self).keys():
            vars(changed)[name] = vars(self)[name]
        return changed

    def fingerprint(self, step: int | None, *parts: Any) -> str:
        """Names a piece of work by all that its result depends on: the parameters that `restore` gave, their step, and
        `parts`. Of step None it is the same for all parameters."""
        model = None if step is None else [step, self.weights]
        text = json.dumps([model, fixed(self.config), self.average, [_plain(part) for part in parts]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def picture(self, data: np.ndarray, columns: int | None = None) -> Picture:
        """Data as they are stored, drawn as what they are; see `pictures.draw`."""
        return pictures.draw(data, self.levels, columns=columns)

    def shown(self, images: int) -> int:
        """How many samples a picture is of, where of images it is of this many."""
        return pictures.POINTS if len(self.source.shape) == 1 else images


def sample_indices(start: int, count: int) -> jax.Array:
    """The indices of samples start … start + count − 1."""
    return start + jnp.arange(count)


def _plain(value: Any) -> Any:
    return str(dataclasses.asdict(value)) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
