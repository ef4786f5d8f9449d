"""--mode=import: a published checkpoint as one of this project's, on which every mode works.

    python main.py --mode=import --config=CONFIG --workdir=DIR --import.file=FILE [--import.weights=raw]

The file's parameters become the parameters, its moving average all of the averages; the optimiser begins anew. Without
PyTorch, and without running anything that is in the file: see `pretrained`.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from score_sde.distributed.mesh import replicated
from score_sde.errors import Checks, UserError
from score_sde.experiment.base import Experiment
from score_sde.models import Network
from score_sde.pretrained.load import WEIGHTS, Loaded, load
from score_sde.training.interrupt import StopRequest
from score_sde.training.state import TrainState
from score_sde.typing import Params
from score_sde.writers import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """file: see `pretrained.load`. weights: "ema", or "raw" for the parameters in the place of their moving average."""

    file: str = ""
    weights: str = "ema"

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(bool(self.file), "file is missing: --import.file=FILE names the checkpoint")
            check.name("weights", self.weights, WEIGHTS)


def check(experiment: Experiment, options: Import) -> None:
    """Raises UserError unless the file can be imported, all of it, into a workdir without checkpoints."""
    if experiment.workdir.checkpoints.exists() and any(experiment.workdir.checkpoints.iterdir()):
        raise UserError(f"{experiment.workdir.checkpoints} holds checkpoints already; import into another --workdir")
    _load(Path(options.file), experiment.network, options.weights)


def run(experiment: Experiment, stop: StopRequest, options: Import) -> None:
    """Writes the checkpoint."""
    loaded = _load(Path(options.file), experiment.network, options.weights)
    sharding = replicated(experiment.mesh)
    state = jax.jit(functools.partial(_state, experiment), out_shardings=sharding)(loaded.raw, loaded.average)
    state = dataclasses.replace(state, step=jax.device_put(jnp.asarray(loaded.step, jnp.int32), sharding))
    stop.check()
    checkpoints = experiment.open_checkpoints(read_only=False)
    try:
        checkpoints.save(state, None)
        checkpoints.wait()
    finally:
        checkpoints.close()
    size = experiment.network.size()
    say(f"import: {size:,} parameters of {options.file} as step {loaded.step} in {experiment.workdir.checkpoints}")


def _state(experiment: Experiment, raw: Params, average: Params) -> TrainState:
    """The training state that goes on from these parameters of the network."""
    process = {"process": experiment.sde.init()} if experiment.sde.learned else {}
    optimiser, half_lives = experiment.optimiser.build(experiment.learning_rate()), experiment.half_lives()
    state = TrainState.create({"network": raw, **process}, optimiser, half_lives, experiment.times.distribution.init())
    return dataclasses.replace(state, ema=tuple({"network": average, **process} for _ in half_lives))


@functools.cache
def _load(path: Path, network: Network, weights: str) -> Loaded:
    """Read once, for the check and for the run."""
    return load(path, network, weights)
