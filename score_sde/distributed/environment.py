"""What must be set before jax is imported. This file imports no jax."""

import importlib.metadata
import os
import platform
import sys
import zlib
from pathlib import Path

CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# An XLA that does not know the flag's value aborts the process, so it is set only where it is known.
JAXLIBS_WITH_THE_FLAG = ("0.10.2",)
ACCELERATOR_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "jax-rocm60-plugin", "libtpu")

# libtpu alone is no TPU: it compiles for TPUs elsewhere, too (--mode=plan). A TPU shows as one of these.
_TPU_DEVICES = ("accel*", "vfio/[0-9]*")
_DEVICES = Path("/dev")

HUGE_PAGES = "glibc.malloc.hugetlb=1"
_CPU_INFO = Path("/proc/cpuinfo")
_HUGE_PAGES_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """On a CPU-only installation, starts the program anew, once, with its large buffers on huge pages.

    XLA takes the memory of a compiled step anew at each call, and the kernel then hands it out, zeroed, in pieces of
    4 kB: 15 % of a U-Net's training step. glibc asks for pages of 2 MB where its tunable says so, which it reads when a
    process starts. Does nothing where the kernel gives huge pages to all or to none, where the user set a tunable, or
    without glibc. The process keeps its number.
    """
    wanted = os.environ.get("GLIBC_TUNABLES") is None and _cpu_only() and platform.libc_ver()[0] == "glibc"
    if wanted and _HUGE_PAGES_STATE.is_file() and "[madvise]" in _HUGE_PAGES_STATE.read_text():
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def prepare() -> None:
    """Has compiled programs kept on disk, see `compile_cache`, unless the user set where, to "" for nowhere.

    On a CPU-only installation, keeps XLA's slow convolution fusion off (a training step takes about half as long). Does
    not where an accelerator's plugin is installed, jaxlib is another version, or the user set the flag.
    Where libtpu is there without a TPU, JAX is told not to look for one: libtpu would ask the network for it.
    Raises RuntimeError if jax was imported before, since it would have no effect.
    """
    if "jax" in sys.modules:
        raise RuntimeError("score_sde.distributed.environment.prepare() must run before jax is imported")
    if _cpu_only() and _version("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cache = compile_cache()
    if cache.is_absolute():  # there is a home
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    flags = os.environ.get("XLA_FLAGS", "")
    known = _version("jaxlib") in JAXLIBS_WITH_THE_FLAG
    if known and _cpu_only() and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_CONVOLUTION_FLAG}".strip()


def compile_cache() -> Path:
    """`score_sde/xla-CPU` in the user's cache folder, CPU a number for what this processor can do.

    XLA compiles for the very processor, and jax's keys do not name it: in a home that machines share, one would run
    another's instructions.
    """
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else [platform.processor()]
    able = {platform.machine(), *(line for line in lines if line.startswith(("model name", "flags", "Features")))}
    return cache_folder() / f"xla-{zlib.crc32(' '.join(sorted(able)).encode()):08x}"


def cache_folder() -> Path:
    """`score_sde` in the user's cache folder; not absolute where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "score_sde"


def _cpu_only() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    plugins = [plugin for plugin in ACCELERATOR_PLUGINS if _version(plugin)]
    tpu = any(any(_DEVICES.glob(pattern)) for pattern in _TPU_DEVICES)
    return not plugins or (plugins == ["libtpu"] and not tpu)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
