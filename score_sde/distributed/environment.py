"""What must be set before jax is imported. This file imports no jax."""

import importlib.metadata
import os
import sys

CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# An XLA that does not know the flag's value aborts the process, so it is set only where it is known.
JAXLIBS_WITH_THE_FLAG = ("0.10.2",)
ACCELERATOR_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "jax-rocm60-plugin", "libtpu")


def prepare() -> None:
    """On a CPU-only installation, keeps XLA's slow convolution fusion off (a training step takes about half as long).

    Does nothing where an accelerator's plugin is installed, jaxlib is another version, or the user set the flag.
    Raises RuntimeError if jax was imported before, since it would have no effect.
    """
    if "jax" in sys.modules:
        raise RuntimeError("score_sde.distributed.environment.prepare() must run before jax is imported")
    flags = os.environ.get("XLA_FLAGS", "")
    known = _version("jaxlib") in JAXLIBS_WITH_THE_FLAG
    cpu_only = not any(_version(plugin) for plugin in ACCELERATOR_PLUGINS)
    if known and cpu_only and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_CONVOLUTION_FLAG}".strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
