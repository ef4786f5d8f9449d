"""The processes of one job: their start, that they are alike, and that they stop together, all by JAX's own runtime.

A job is one process on each host, each with the host's accelerators, all running this program with the same arguments.
JAX finds the others on TPU pods, Slurm, Open MPI and Kubernetes; elsewhere three variables say where they are:

    JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0    JAX_NUM_PROCESSES=N    JAX_PROCESS_ID=0 … N − 1
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import queue
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_sde.errors import RunFailed, UserError

# Seconds without a sign of life after which a process counts as dead, and its job ends.
HEARTBEAT_SECONDS = 50
MARGIN_SECONDS = 5  # in which the runtime says so
SHUTDOWN_SECONDS = 30  # that a process which ends waits for the others to end
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "libtpu")
# What schedulers say of how many processes a job has.
COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
GOES_ON = "the same command goes on from the last checkpoint"
HOSTS = "TPU_WORKER_HOSTNAMES"  # of the TPU slice, separated by commas


def start(distributed: str) -> None:
    """Joins the processes of the job; before any computation. distributed: "auto" joins where others
    are found, "on" needs them, "off" is alone.

    Raises UserError where this would be the only process of a job that should have more, RunFailed where the others do
    not answer.
    """
    if distributed == "off" or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            **_from_environment(),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:  # no cluster was found
        if distributed == "on":
            hint = "on TPU pods, Slurm, Open MPI and Kubernetes they are found; elsewhere set JAX_COORDINATOR_ADDRESS"
            hint += ", JAX_NUM_PROCESSES and JAX_PROCESS_ID"
            raise UserError(f"--distributed=on, but no other processes were found ({error}); {hint}") from error
    except RuntimeError as error:
        if distributed == "auto" and "must be called before" in str(error):
            return  # called from a program that has computed already, alone
        raise RunFailed(f"the other processes of the job do not answer: {_first_line(error)}") from error
    expected = _expected()
    if jax.process_count() == 1 and (distributed == "on" or expected > 1):
        told = f"where the scheduler speaks of {expected}" if expected > 1 else "with --distributed=on"
        remedy = "start it on every host (srun, mpirun, scripts/launch), or set --distributed=off to run alone"
        raise UserError(f"this is a job of a single process, {told}; {remedy}")
    if several():
        hosts = _texts(platform.node())
        if jax.process_index() == 0:
            print(f"{len(hosts)} processes: " + ", ".join(f"{number} on {host}" for number, host in enumerate(hosts)))


@contextmanager
def together() -> Iterator[None]:
    """A block in which no process waits for another. Where some raise UserError in it all do, in the same words.

    So all end at once and alike, and every log says whose input is bad.
    """
    own = None
    try:
        yield
    except UserError as error:
        if not several():
            raise
        own = error
    if not several():
        return
    found = [json.loads(text) for text in _texts(json.dumps([platform.node(), "" if own is None else str(own)]))]
    problems: dict[str, list[int]] = {}
    for number, (_, problem) in enumerate(found):
        problems.setdefault(problem, []).append(number)
    everywhere = len(problems) == 1
    lines = [
        problem if everywhere else f"process {_named(who)} of {len(found)} ({found[who[0]][0]}): {problem}"
        for problem, who in problems.items()
        if problem
    ]
    if lines:
        raise UserError("; ".join(lines)) from own


def check_alike(config: Mapping[str, Any]) -> None:
    """Raises UserError on every process where one runs another config, code or packages than process 0."""
    if jax.process_count() == 1:
        return
    texts = {"config": json.dumps(config, sort_keys=True, indent=0), "code": _code(), "packages": _packages()}
    digests = np.stack(
        [np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32) for text in texts.values()]
    )
    found = of_all(digests)
    differs = (found != found[:1]).any(axis=2)  # (processes, parts)
    problems = []
    for number, (part, text) in enumerate(texts.items()):
        others = np.flatnonzero(differs[:, number])
        if not len(others):
            continue
        first = _texts(text)[0]
        detail = f" (here {_difference(text, first)})" if jax.process_index() in others else ""
        problems.append(f"process {_named(others)} of {jax.process_count()} runs another {part} than process 0{detail}")
    if problems:
        raise UserError("; ".join(problems))


def stop_agreement() -> Any:
    """What `StopRequest.agree_by` takes: whether all processes have come to the point at which they stop together.

    Of a job of one process too, as a TPU's only host or one task of Slurm is: JAX's runtime has taken over SIGTERM.
    """
    return multihost_utils.reached_preemption_sync_point if jax.distributed.is_initialized() else None


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(error: Exception) -> NoReturn:
    """Ends this process, of several, after an error that it did not expect: most often, that another one is gone.

    A collective then fails at once, or never returns. JAX's runtime knows a process as dead when it has been silent for
    `HEARTBEAT_SECONDS`, names it as "task N", and ends all others by SIGABRT, in whatever they are: it may come first.
    So do the others end where this process alone has failed, in whose collectives they wait.
    """
    traceback.print_exception(error)
    own = jax.process_index()
    _warn(f"error: process {own} failed: {_first_line(error)}")
    _warn(f"process {own} looks which of the {jax.process_count()} still answer; up to {_patience()} s")
    _warn(f"error: {_others() or 'all others answer'}. Start all processes again: {GOES_ON}")
    os._exit(1)  # without waiting for the others to end, as the interpreter's end would


def leave_unless_all_do(error: Exception, status: int) -> None:
    """Returns where all come here, as where training diverged. Where a process does alone, as where the disk of its
    host is full or lacks data that are read late, ends it as `leave` does, with `status`."""
    if several() and (wrong := _others()):
        _warn(f"error: process {jax.process_index()} failed: {_first_line(error)}; {wrong}")
        os._exit(status)


def _patience() -> int:
    return HEARTBEAT_SECONDS + MARGIN_SECONDS


def _others() -> str:
    """What is wrong with the other processes; nothing where all ask this too. Returns within `_patience` seconds."""
    answer: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answer.put(_who_answers()), daemon=True).start()  # it may never return
    try:
        return answer.get(timeout=_patience())
    except queue.Empty:
        return f"others are still at work, and end when process {jax.process_index()} is missed"


def _who_answers() -> str:
    """Says who does not, once each of the others asks this too or has been silent for `HEARTBEAT_SECONDS`."""
    try:
        with multihost_utils.live_devices(jax.devices()) as devices:
            gone = set(range(jax.process_count())) - {device.process_index for device in devices}
    except multihost_utils.ProcessFailureError as failure:  # of those that asked too, and have ended since
        gone = {device.process_index for device in failure.failed_devices}
    except Exception as failure:  # whatever it is, it is said, and this process ends
        return f"which others are there cannot be known: {_first_line(failure)}"
    return f"process {', '.join(map(str, sorted(gone)))} does not answer any more" if gone else ""


def wait_for_all(name: str) -> None:
    """Returns when every process is here, so that what process 0 wrote before is there for all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def of_all(value: np.ndarray | np.generic) -> np.ndarray:
    """What each process has, stacked in their order, on every process."""
    own = np.asarray(value)
    return own[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(own))


def from_first(value: np.ndarray) -> np.ndarray:
    """What process 0 has, on every process."""
    return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))


def _from_environment() -> dict[str, Any]:
    count, number = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    if count is None and number is None:
        return {}
    try:
        return {"num_processes": int(str(count)), "process_id": int(str(number))}
    except ValueError as error:
        raise UserError(f"JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={number} must both be whole numbers") from error


def _expected() -> int:
    """The number of processes that the environment speaks of, 1 where it says nothing."""
    counts = [int(value) for value in map(os.environ.get, COUNTS) if value is not None and value.isdecimal()]
    hosts = [host for host in os.environ.get(HOSTS, "").split(",") if host]
    return max([1, len(hosts), *counts])


def _code() -> str:
    root = Path(__file__).parents[1]
    digest = lambda file: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return "\n".join(f"{file.relative_to(root)} {digest(file)}" for file in sorted(root.rglob("*.py")))


def _packages() -> str:
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return "\n".join(f"{name} {found.get(name, 'absent')}" for name in PACKAGES)


def _texts(text: str) -> list[str]:
    """What each process has, in their order, on every process."""
    data = np.frombuffer(text.encode(), np.uint8)
    longest = int(np.max(of_all(np.asarray(len(data)))))
    padded = np.zeros(longest, np.uint8)
    padded[: len(data)] = data
    return [row.tobytes().rstrip(b"\0").decode() for row in of_all(padded)]


def _named(processes: Iterable[Any]) -> str:
    numbers = list(map(str, processes))
    return ", ".join(numbers[:8]) + (" …" if len(numbers) > 8 else "")


def _difference(own: str, first: str) -> str:
    """The first line that only one of two texts has."""
    here, there = own.splitlines(), first.splitlines()
    mine = next((line for line in here if line not in there), "nothing")
    theirs = next((line for line in there if line not in here), "nothing")
    return f"{mine.strip(' ,')}, there {theirs.strip(' ,')}"


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))
