"""Which mesh trains fastest on a topology, with how many parts of a batch, and with or without recomputation.

Every way to split the devices is first weighed by arithmetic: the state must fit, and time is about

    model FLOPs (4/3 of them with remat blocks) / the chips' peak + what the layout sends at least / the links' rate

Those that promise most are compiled, which takes minutes each, until there are enough and one fits, and ranked by
their rooflines.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from score_sde.distributed.chips import Chip, bandwidth, chip_of
from score_sde.distributed.mesh import MeshSettings, batch_shards
from score_sde.distributed.sharding import RULES
from score_sde.errors import RunFailed, UserError
from score_sde.experiment.base import Experiment
from score_sde.experiment.flops import step_flops
from score_sde.experiment.planning import analysis, facts
from score_sde.experiment.planning.table import duration, gib
from score_sde.models.layers import REMATS
from score_sde.training.interrupt import StopRequest
from score_sde.writers import Progress

COMPILED = 8  # of the candidates, at least
AGAIN = 4 / 3  # of the FLOPs of a step, where the forward pass is computed twice
TENSOR = (1, 2, 4, 8)
PARTS = (1, 2, 4, 8)


class Candidate(NamedTuple):
    """overrides: of the config, by dotted key. seconds: of a step, by arithmetic."""

    experiment: Experiment
    overrides: dict[str, Any]
    seconds: float


def search(experiment: Experiment, stop: StopRequest) -> list[dict[str, Any]]:
    """The candidates that were compiled: those that fit first, the fastest first.

    One that the compiler fails at says why and stands last. Raises RunFailed where it fails at all, Interrupted after
    a signal.
    """
    candidates = sorted(_candidates(experiment), key=lambda each: each.seconds)
    if not candidates:
        raise UserError("plan.search: the state fits on no mesh of these devices; plan for more of them")
    progress = Progress("plan", min(COMPILED, len(candidates)), unit="programs", every=0.0)
    found: list[dict[str, Any]] = []
    try:
        for candidate in candidates:
            stop.check()
            failed = [row for row in found if "failed" in row]
            if len(found) >= COMPILED and (any(row["fits"] for row in found) or len(failed) == len(found)):
                break
            if any(row["fits"] and _in_fewer_parts(row["overrides"], candidate.overrides) for row in found):
                continue  # more parts of a batch are for what does not fit in fewer
            found.append({"overrides": candidate.overrides, **_facts(candidate.experiment)})
            progress.advance()
    finally:
        progress.close()
    if all("failed" in row for row in found):
        raise RunFailed(f"plan.search: {found[0]['failed']}")
    step = lambda row: row["estimate"]["step"] if "estimate" in row else float("inf")
    return sorted(found, key=lambda row: (not row["fits"], "failed" in row, step(row)))


def _facts(experiment: Experiment) -> dict[str, Any]:
    try:
        return facts.training(experiment)
    except RunFailed as error:
        return {"fits": False, "failed": str(error)}


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """The table of what was found, and the flags of the fastest."""
    names = [key.partition(".")[2] for key in found[0]["overrides"]]
    rows = [[*names, "fits", "peak", "estimate", "images/s", "MFU"]]
    for row in found:
        cells = list(map(str, row["overrides"].values()))
        if "failed" in row:
            rows.append([*cells, "failed"])
            continue
        peak = row["memory"]["peak"] if "memory" in row else row["needed"]
        cells += ["yes" if row["fits"] else "no", gib(peak)]
        if "estimate" in row:
            each = row["estimate"]
            cells += [duration(each["step"]), f"{each['images_per_second']:,.0f}", f"{each['utilisation']:.1%}"]
        rows.append(cells)
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    yield ""
    yield "search: a training step with"
    yield from ("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)) for cells in rows)
    yield from dict.fromkeys(row["failed"] for row in found if "failed" in row)
    if found[0]["fits"]:
        flags = " ".join(f"--config.{key}={value}" for key, value in found[0]["overrides"].items())
        yield f"the fastest that fits: {flags}"


def _candidates(experiment: Experiment) -> Iterator[Candidate]:
    """All that can be built and whose state fits."""
    devices, slices = list(experiment.mesh.devices.flat), experiment.mesh.shape["slice"]
    chip = chip_of(devices[0])
    assert chip is not None
    settings: Any = experiment.architecture
    model = step_flops(experiment)
    for fsdp, tensor in itertools.product(_powers(len(devices) // slices), _tensor(experiment)):
        if len(devices) // slices % (fsdp * tensor):
            continue
        data = len(devices) // slices // (fsdp * tensor)
        mesh = MeshSettings(data=data, fsdp=fsdp, tensor=tensor, slices=slices).build(devices)
        for parts, remat in itertools.product(PARTS, REMATS if hasattr(settings, "remat") else (None,)):
            if experiment.training.batch_size % (batch_shards(mesh) * parts):
                continue
            training = dataclasses.replace(experiment.training, accumulate=parts)
            changed = dataclasses.replace(experiment, mesh=mesh, training=training)
            overrides: dict[str, Any] = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
            overrides["training.accumulate"] = parts
            if remat is not None:
                changed = dataclasses.replace(changed, architecture=dataclasses.replace(settings, remat=remat))
                overrides["model.remat"] = remat
            if analysis.state_bytes(changed.abstract_state()) <= chip.memory:
                yield Candidate(
                    changed, overrides, _seconds(changed, chip, model * (AGAIN if remat == "blocks" else 1))
                )


def _in_fewer_parts(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the first differs from the second in that alone."""
    key = "training.accumulate"
    return one[key] < other[key] and {**one, key: 0} == {**other, key: 0}


def _powers(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length()) if largest % 2**power == 0]


def _tensor(experiment: Experiment) -> tuple[int, ...]:
    """Sizes of the axis `tensor`, more than 1 where it would split something."""
    names = {name for each in experiment.network.parameters().values() for name in each.axes}
    return TENSOR if any(RULES.get(name or "") == "tensor" for name in names) else (1,)


def _seconds(experiment: Experiment, chip: Chip, flops: float) -> float:
    mesh = experiment.mesh
    least = analysis.minimum(
        experiment.abstract_state().params, mesh, experiment.config["model"]["dtype"], experiment.training.accumulate
    )
    sent = sum(size / bandwidth(chip, mesh, axes) for (_, axes), size in least.items())
    return flops / mesh.size / chip.flops + sent
