"""A plan as plain data: what `plan.json` holds, and the table shows."""

from typing import Any

from score_sde.distributed.chips import Chip, chip_of
from score_sde.distributed.mesh import batch_shards
from score_sde.distributed.roofline import flops_of
from score_sde.experiment.base import Experiment
from score_sde.experiment.flops import step_flops
from score_sde.experiment.planning import analysis, programs
from score_sde.experiment.planning.analysis import Analysis, TooLarge

HOUR = 3600


def describe(experiment: Experiment) -> dict[str, Any]:
    """What is planned, and for what."""
    model, mesh = experiment.config["model"], experiment.mesh
    device = mesh.devices.flat[0]
    chip = chip_of(device)
    return {
        "command": experiment.command,
        "topology": experiment.plan.topology or "the devices here",
        "chip": device.device_kind if chip is None else chip.name,
        "chips": mesh.size,
        "chip_memory": None if chip is None else chip.memory,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "network": model["name"],
        "parameters": experiment.network.size(),
        "dtype": model["dtype"],
        "remat": model.get("remat"),
    }


def training(experiment: Experiment) -> dict[str, Any]:
    """Of one training step, and of all."""
    mesh, batch = experiment.mesh, experiment.training.batch_size
    chip = chip_of(mesh.devices.flat[0])
    model = step_flops(experiment)
    found = analysis.analyse(programs.training_step(experiment), mesh, chip)
    params = experiment.abstract_state().params
    least = analysis.minimum(params, mesh, experiment.config["model"]["dtype"], experiment.training.accumulate)
    facts = _program(found, chip, mesh.size, batch, model, least)
    facts["notes"] = [*experiment.layout.lines(), *(experiment.layout.untiled() if chip is not None else ())]
    if facts["fits"] is False:
        facts["remedies"] = _training_remedies(experiment, found)
    estimate = facts.get("estimate")
    if estimate is not None:
        hours = experiment.training_steps * estimate["step"] / HOUR
        estimate |= {
            "images_per_second": batch / estimate["step"],
            "steps": experiment.training_steps,
            "hours": hours,
            "chip_hours": hours * mesh.size,
        }
    return facts


def sampling(experiment: Experiment) -> dict[str, Any]:
    """Of a batch of samples by the first sampler, all passes of its loop."""
    name, sampler = next(iter(experiment.samplers.items()))
    mesh = experiment.mesh
    chip, over = chip_of(mesh.devices.flat[0]), batch_shards(mesh)
    batch = -(-experiment.sampling.batch_size // over) * over
    traced, passes = programs.sampling_loop(experiment, sampler, batch)
    found = analysis.analyse(traced, mesh, chip, passes)
    facts = _program(found, chip, mesh.size, batch, flops_of(traced.jaxpr.jaxpr, passes), {})
    facts |= {"sampler": name, "passes": passes}
    if facts["fits"] is False:
        facts["remedies"] = _sampling_remedies(experiment, found, batch)
    estimate = facts.get("estimate")
    if estimate is not None:
        estimate |= {
            "pass": estimate["step"] / passes,
            "images_per_second": batch / estimate["step"],
        }
    return facts


def _program(
    found: Analysis | TooLarge, chip: Chip | None, chips: int, batch: int, model: int, least: dict[Any, float]
) -> dict[str, Any]:
    if isinstance(found, TooLarge):
        return {"batch": batch, "fits": False, "needed": found.needed, "available": found.available}
    rows = analysis.table(found.collectives, least)
    facts: dict[str, Any] = {
        "batch": batch,
        "fits": None if chip is None else found.memory.peak <= chip.memory,
        "memory": {**found.memory._asdict(), "peak": found.memory.peak},
        "flops": {"model": model / chips, "compiled": found.flops},
        "accessed": found.accessed,
        "intensity": found.flops / max(found.accessed, 1),
        "collectives": [row._asdict() for row in rows],
        "sent": sum(row.sent for row in rows),
        "least": sum(row.least for row in rows),
    }
    line = found.roofline
    if line is not None and chip is not None:
        utilisation = model / chips / chip.flops / line.step
        facts["estimate"] = {**line._asdict(), "step": line.step, "bound": line.bound, "utilisation": utilisation}
    return facts


def _training_remedies(experiment: Experiment, found: Analysis | TooLarge) -> list[str]:
    state = analysis.state_bytes(experiment.abstract_state())
    return analysis.remedies(
        *_needs(experiment, found, state),
        mesh=experiment.mesh.shape,
        remat=experiment.config["model"].get("remat"),
        per_chip=experiment.training.batch_size // batch_shards(experiment.mesh),
        accumulate=experiment.training.accumulate,
    )


def _sampling_remedies(experiment: Experiment, found: Analysis | TooLarge, batch: int) -> list[str]:
    params = analysis.state_bytes(experiment.abstract_state().params)
    return analysis.sampling_remedies(*_needs(experiment, found, params), mesh=experiment.mesh.shape, batch=batch)


def _needs(experiment: Experiment, found: Analysis | TooLarge, held: float) -> tuple[float, float, float]:
    """The bytes of a chip: those `held`, the rest that the program needs, and those that there are."""
    chip = chip_of(experiment.mesh.devices.flat[0])
    assert chip is not None
    needed = found.needed if isinstance(found, TooLarge) else found.memory.peak
    return held, needed - held, chip.memory
