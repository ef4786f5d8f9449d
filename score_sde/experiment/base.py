"""An experiment: the objects that a config describes, and what all modes do with them."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from score_sde import rng
from score_sde.checkpoint import Checkpoints
from score_sde.data import Levels, Records, Source
from score_sde.denoiser import Denoiser, Parameterisation
from score_sde.distributed.mesh import replicated
from score_sde.errors import Checks, UserError
from score_sde.evaluation.metrics import METRICS
from score_sde.experiment.workdir import Workdir
from score_sde.losses import Objective
from score_sde.models import Network
from score_sde.samplers import GRIDS, Sampler, check_grid
from score_sde.sde import SDE
from score_sde.training.duration import Duration
from score_sde.training.loop import Training
from score_sde.training.optimiser import Optimiser
from score_sde.training.state import TrainState
from score_sde.typing import Params
from score_sde.writers import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """samplers: which to run, each a name in `config.samplers` or of a solver. num_samples: of each.

    batch_size: how many are computed together; a sample is the same in any batch. seed: of the samples' noise.
    """

    samplers: tuple[str, ...] = ("pc", "ode", "ddim")
    num_samples: int = 64
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.num_samples <= 10**9, f"num_samples must lie in [1, 1e9], not {self.num_samples}")
            check.that(1 <= self.batch_size <= 10**6, f"batch_size must lie in [1, 1e6], not {self.batch_size}")
            check.that(self.seed in rng.SEEDS, f"seed must lie in [0, 2**32), not {self.seed}")
            once = len(set(self.samplers)) == len(self.samplers) > 0
            check.that(once, f"samplers must name at least one sampler, each once, not {self.samplers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """rtol, atol: of the ODE. repeats: dequantisation and probe draws per image. noise_images: how many images of
    pure noise are scored for comparison."""

    batch_size: int = 128
    rtol: float = 1e-4
    atol: float = 1e-4
    repeats: int = 1
    noise_images: int = 64

    def __post_init__(self) -> None:
        with Checks() as check:
            for name in ("batch_size", "repeats", "noise_images"):
                check.that(1 <= getattr(self, name) <= 10**6, f"{name} must lie in [1, 1e6], not {getattr(self, name)}")
            for name in ("rtol", "atol"):
                check.that(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """metrics: rows of `evaluation.metrics.METRICS`."""

    metrics: tuple[str, ...] = ("frechet_pixels", "recognition")

    def __post_init__(self) -> None:
        with Checks() as check:
            for name in self.metrics:
                check.name("metric", name, METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a mode needs. config: the resolved config, plain data; command: what was typed."""

    config: dict[str, Any]
    command: str
    workdir: Workdir
    seed: int
    mesh: Mesh
    source: Source
    sde: SDE
    network: Network
    parameterisation: Parameterisation
    objective: Objective
    optimiser: Optimiser
    training: Training
    sampling: Sampling
    samplers: dict[str, Sampler]
    likelihood: Likelihood
    evaluation: Evaluation

    @property
    def levels(self) -> Levels:
        return Levels(self.source.levels)

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
        steps = duration.steps(self.training.batch_size, len(self.train_records))
        if steps >= 2**31:
            raise UserError(f"'{duration}' are {steps:.3g} training steps, more than a counter of 32 bits holds")
        return steps

    def learning_rate(self) -> Any:
        """The learning rate by step."""
        return self.optimiser.rate(self.steps(self.optimiser.warmup), self.steps(self.optimiser.decay))

    def check_in_float32(self) -> None:
        """Raises UserError where float32 does not hold the process's coefficients, or tell a grid's times apart."""
        try:
            self.sde.check_float32()
        except UserError as error:
            raise UserError(f"config: sde: {error}") from error
        for name, sampler in self.samplers.items():
            try:
                check_grid(GRIDS[sampler.grid](self.sde, sampler.steps))
            except UserError as error:
                raise UserError(f"config: samplers.{name}: {error}") from error

    def init_state(self) -> TrainState:
        """The training state at step 0. Traceable."""
        params = self.network.init(rng.stream(self.seed, "parameters"))
        return TrainState.create(params, self.optimiser.build(self.learning_rate()))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state; nothing is computed."""
        sharding = replicated(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self.init_state),
        )

    def open_checkpoints(self, *, read_only: bool) -> Checkpoints:
        return Checkpoints(self.workdir.checkpoints, keep=self.training.keep_checkpoints, read_only=read_only, warn=say)

    def denoiser(self, params: Params) -> Denoiser:
        """The trained denoiser, for inference."""
        return self.parameterisation.denoiser(self.sde, self.network.apply, params)

    def restore(self) -> tuple[int, Params]:
        """(step, averaged parameters) of the newest sound checkpoint."""
        checkpoints = self.open_checkpoints(read_only=True)
        try:
            return checkpoints.restore_ema(self.abstract_state().ema)
        finally:
            checkpoints.close()

    def fingerprint(self, step: int, *parts: Any) -> str:
        """Names a piece of work by all that its result depends on: the model at a step, and `parts`."""
        fixed = {key: self.config[key] for key in ("seed", "data", "sde", "model", "parameterisation")}
        text = json.dumps([step, fixed, [_plain(part) for part in parts]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_uint8(self, level: np.ndarray) -> np.ndarray:
        """Levels as 8-bit grey or colour values, for pictures."""
        return np.round(level.astype(np.float64) * 255 / (self.source.levels - 1)).astype(np.uint8)


def sample_indices(start: int, count: int) -> jax.Array:
    """The indices of samples start … start + count − 1."""
    return start + jnp.arange(count)


def _plain(value: Any) -> Any:
    return str(dataclasses.asdict(value)) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
