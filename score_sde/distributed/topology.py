"""The devices of TPUs that are not here, for which JAX compiles ahead of time: the TPU's compiler needs no TPU."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from score_sde.distributed import slices
from score_sde.errors import UserError

# What libtpu would ask of a machine with a TPU, and complain of; a compiler alone may run beside another.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# On v4, one device for the two cores of a chip, as programs there have by default.
OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


def devices_of(topology: str, count: int = 1) -> list[Any]:
    """The devices of `count` slices of a topology, to compile for and nothing else.

    topology: a row of `SLICES`, such as `v5e:16x16`. Raises UserError for another, and without libtpu.
    """
    kind, _ = slices.check(topology, "plan.topology")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"plan.topology={topology} needs the TPU's compiler: pip install -e '.[plan]'; "
            "without a topology the plan is for the devices here"
        )
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    # JAX writes programs for devices that are not here to its cache and cannot read them back.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # what a compilation before has made it remember
    options = OPTIONS.get(kind, {}) | ({"num_slices": count} if count > 1 else {})
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except RuntimeError as error:  # what jax raises for what libtpu refuses
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"plan.topology={topology} is none that libtpu knows: {reason}") from error
