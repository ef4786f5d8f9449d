"""Sections of a config that say what is done with a trained model; those of training stand in `training`."""

import dataclasses
from typing import Any

from score_sde import rng
from score_sde.distributed import slices, topology
from score_sde.errors import Checks
from score_sde.evaluation.exact import EXACT_METRICS
from score_sde.evaluation.extractors import EXTRACTORS
from score_sde.evaluation.metrics import METRICS
from score_sde.experiment.label import UNLABELLED, Label
from score_sde.likelihood import check_trace
from score_sde.oracles import ORACLES
from score_sde.training.ema import LONGEST

CHECKPOINTS = ("newest", "all", "follow")
TASKS = ("generate", "reconstruct", "interpolate")
DEQUANTISATIONS = ("uniform", "variational")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """samplers: which to run, each a name in `config.samplers` or of a solver. num_samples: of each.

    batch_size: how many are computed together; a sample is the same in any batch. seed: of the samples' noise.
    task: "generate" with the samplers; "reconstruct", which encodes num_samples test images by the probability-flow
    ODE and decodes them; or "interpolate" in interpolation_steps from the first to the second of num_samples pairs of
    test images, between their encodings. The ODE's tolerances are those of the section `likelihood`.
    label: of the samples of task "generate", for a network with classes: a number, "all" for each in turn, or "none".
    """

    samplers: tuple[str, ...] = ("pc", "ode", "ddim")
    num_samples: int = 64
    batch_size: int = 64
    seed: int = 0
    task: str = "generate"
    interpolation_steps: int = 8
    label: Label = UNLABELLED

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(1 <= self.num_samples <= 10**9, f"num_samples must lie in [1, 1e9], not {self.num_samples}")
            check.that(1 <= self.batch_size <= 10**6, f"batch_size must lie in [1, 1e6], not {self.batch_size}")
            check.that(self.seed in rng.SEEDS, f"seed must lie in [0, 2**32), not {self.seed}")
            once = len(set(self.samplers)) == len(self.samplers) > 0
            check.that(once, f"samplers must name at least one sampler, each once, not {self.samplers}")
            check.name("task", self.task, TASKS)
            steps = self.interpolation_steps
            check.that(2 <= steps <= 1000, f"interpolation_steps must lie in [2, 1000], not {steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """data: "test", "train", or a folder of images of the source's size. images: how many, the first; 0 for all.

    rtol, atol: of the ODE. trace, probes: how the divergence is found, see `likelihood`. repeats: dequantisation and
    probe draws per image. bound_draws: times and noises per repeat for the evidence bound, 0 for none. noise_images:
    how many images of pure noise are scored for comparison.

    dequantisation: "uniform", or "variational": a flow (`models.dequantiser`) of `dequantiser_channels`, trained for
    `dequantiser_steps` of Adam on the finished model, with batches of training.batch_size.
    """

    data: str = "test"
    images: int = 0
    batch_size: int = 128
    rtol: float = 1e-4
    atol: float = 1e-4
    trace: str = "rademacher"
    probes: int = 1
    repeats: int = 1
    bound_draws: int = 1
    noise_images: int = 64
    dequantisation: str = "uniform"
    dequantiser_steps: int = 2000
    dequantiser_learning_rate: float = 1e-3
    dequantiser_channels: int = 32

    def __post_init__(self) -> None:
        with Checks() as check:
            for name in ("batch_size", "repeats", "noise_images", "dequantiser_steps", "dequantiser_channels"):
                check.that(1 <= getattr(self, name) <= 10**6, f"{name} must lie in [1, 1e6], not {getattr(self, name)}")
            for name in ("rtol", "atol", "dequantiser_learning_rate"):
                check.that(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
            for name in ("images", "bound_draws"):
                check.that(0 <= getattr(self, name) <= 10**6, f"{name} must lie in [0, 1e6], not {getattr(self, name)}")
            check.name("dequantisation", self.dequantisation, DEQUANTISATIONS)
            check.that(bool(self.data), "data must be test, train or a folder of images")
            check_trace(self.trace, self.probes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """metrics: rows of `evaluation.metrics.METRICS`. extractors: rows of `evaluation.extractors.EXTRACTORS`, set up in
    the section of that name; each metric is taken with all of them that it can be taken with.

    reference: what samples are compared with, the split "test" or "train", or a .npz file with the `mu` and `sigma` of
    another project. statistics: the folder that keeps features of real data, "" for one in the user's cache folder.
    checkpoints: which are scored, "newest", "all", or "follow": all, and new ones as they appear. images: a folder or
    zip of images to be scored in the place of samples.

    ema: which of `training.ema_half_lives` and, counted on, `training.ema_lengths` is the trained model, for all modes.
    ema_length: instead, the average of this length, once --mode=ema has made it; 0 for none.
    """

    metrics: tuple[str, ...] = ("frechet", "recognition")
    extractors: tuple[str, ...] = ("pixels",)
    reference: str = "test"
    statistics: str = ""
    checkpoints: str = "newest"
    images: str = ""
    ema: int = 0
    ema_length: float = 0.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.ema >= 0, f"ema must be at least 0, not {self.ema}")
            length = self.ema_length
            check.that(0 <= length <= LONGEST, f"ema_length must be 0 or lie in (0, {LONGEST:.4f}], not {length}")
            check.name("checkpoints", self.checkpoints, CHECKPOINTS)
            check.that(bool(self.reference), "reference must be test, train or a .npz file")
            for name in self.metrics:
                check.name("metric", name, METRICS)
            for name in self.extractors:
                check.name("extractor", name, EXTRACTORS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """samplers: which to compare, each a name in `config.samplers` or of a solver. nfe: budgets of network evaluations.

    tolerance_factors: on rtol and atol, for samplers that choose their steps themselves and so have no budget.
    seeds: how many, counted from sampling.seed. num_samples: of each cell and seed. oracle: a row of
    `oracles.ORACLES` to compare on, instead of a checkpoint. metrics: rows of `evaluation.exact.EXACT_METRICS` on an
    oracle, else of `evaluation.metrics.METRICS`; none means all of them there, and evaluation.metrics here.
    """

    samplers: tuple[str, ...] = (
        *("euler_maruyama", "pc", "ddim", "heun", "edm", "dpmpp", "dpmpp_2m", "dpmpp_3m"),
        *("deis", "unipc", "sde_dpmpp_2m", "seeds_2", "sa_solver", "ode"),
    )
    nfe: tuple[int, ...] = (5, 10, 20, 50, 200)
    tolerance_factors: tuple[float, ...] = (100.0, 30.0, 10.0, 3.0, 1.0)
    seeds: int = 3
    num_samples: int = 1024
    batch_size: int = 256
    oracle: str = ""
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with Checks() as check:
            for name in ("samplers", "nfe", "tolerance_factors"):
                entries = getattr(self, name)
                once = len(set(entries)) == len(entries) > 0
                check.that(once, f"{name} must have at least one entry, each once, not {entries}")
            for nfe in self.nfe:
                check.that(1 <= nfe <= 10**5, f"nfe must lie in [1, 1e5], not {nfe}")
            for factor in self.tolerance_factors:
                check.that(factor > 0, f"tolerance_factors must be positive, not {factor}")
            check.that(1 <= self.seeds <= 1000, f"seeds must lie in [1, 1000], not {self.seeds}")
            check.that(2 <= self.num_samples <= 10**7, f"num_samples must lie in [2, 1e7], not {self.num_samples}")
            check.that(1 <= self.batch_size <= 10**6, f"batch_size must lie in [1, 1e6], not {self.batch_size}")
            if self.oracle:
                check.name("oracle", self.oracle, ORACLES)
            for name in self.metrics:
                check.name("metric", name, EXACT_METRICS if self.oracle else METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planning:
    """The section `plan`. topology: of TPUs that need not be here, such as "v5e:16x16"; none for the devices here.

    slices of it: as many as the mesh has. search: whether other meshes, micro-batches and recomputation are tried, too.
    """

    topology: str = ""
    search: bool = False

    def __post_init__(self) -> None:
        if self.topology:
            slices.check(self.topology, "topology")

    def devices(self, count: int = 1) -> list[Any] | None:
        """Those of `count` slices to plan for; None for those here."""
        return topology.devices_of(self.topology, count) if self.topology else None
