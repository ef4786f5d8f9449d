"""The processes that the batteries run over, the times at which they look, and the coefficients there (cached)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.sde import PROCESSES, SDE, Cosine, Options, RectifiedFlow, Trigonometric

PLAIN: dict[str, SDE] = {name: PROCESSES[name]() for name in sorted(PROCESSES)}
SHIFTED: dict[str, SDE] = {
    f"{name}-shift": Options(shift=3.0).apply(PLAIN[name]) for name in ("vp", "subvp", "ve", "rectified_flow", "vdm")
} | {f"{name}-small-shift": Options(shift=0.1).apply(PLAIN[name]) for name in ("vp", "rectified_flow")}
ZERO_TERMINAL: dict[str, SDE] = {
    f"{name}-zero": Options(zero_terminal_snr=True).apply(PLAIN[name]) for name in ("vp", "cosine")
} | {"rectified_flow-shift-zero": Options(shift=3.0, zero_terminal_snr=True).apply(PLAIN["rectified_flow"])}
TO_ONE: dict[str, SDE] = {
    "cosine-to-1": Cosine(T=1.0),
    "rectified_flow-to-1": RectifiedFlow(T=1.0),
    "trigonometric-to-1": Trigonometric(T=1.0),
}
ENDING = ZERO_TERMINAL | TO_ONE  # in pure noise, with infinities at T
EVERY = PLAIN | SHIFTED | ENDING


def over(processes: dict[str, SDE]):
    """Runs a test over them, as its argument `sde`."""
    return pytest.mark.parametrize("sde", processes.values(), ids=processes)


every_process = over(EVERY)
plain_process = over(PLAIN)

COEFFICIENTS = ("alpha", "sigma", "drift_coefficient", "diffusion_coefficient", "sigma_bar")
METHODS = (*COEFFICIENTS, "log_snr", "alpha_derivative", "sigma_derivative")
COUNT = 401
BLOCK = 1024  # how many times a program takes at once, however many are asked for
LAST = 1e-6  # how near to T, in its units, the times come


def times(sde: SDE) -> np.ndarray:
    """Times of [t_min, T] that float32 holds exactly: evenly spaced, and crowded towards either end, both included.

    T itself is left out of a process that ends in pure noise.
    """
    part = COUNT // 3
    from_start = np.geomspace(max(sde.t_min, 1e-6), sde.T, part)
    from_end = sde.T - np.geomspace(LAST * sde.T, 0.5 * (sde.T - sde.t_min), part)
    even = np.linspace(sde.t_min, sde.T, COUNT - 2 * part)
    t = np.unique(np.concatenate([from_start, from_end, even]).astype(np.float32))
    return t[t < np.float32(sde.T)] if sde.ends_in_noise else t


def compute(sde: SDE, t: np.ndarray, dtype: str, names=METHODS) -> dict[str, np.ndarray]:
    """Coefficients at t, computed in `dtype` ("float32" or "float64"), as NumPy float64.

    Each is a program of its own: one of all of them takes the compiler longer for processes that are made of others.
    """
    return {name: _run(sde, name, dtype, t)[0] for name in names}


_programs: dict[tuple[int, str], tuple[SDE, Callable[..., Any]]] = {}  # with the process, so that its id stays its own


def _run(sde: SDE, name: str, dtype: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """What the process's function `name` gives, in parts of `BLOCK` inputs: compiled once, whatever is asked of it."""
    _, program = _programs.setdefault((id(sde), name), (sde, jax.jit(getattr(sde, name))))
    shape, flat = np.shape(inputs[0]), [np.ravel(each).astype(dtype) for each in inputs]
    count, found = len(flat[0]), []
    padded = [np.pad(each, (0, -count % BLOCK), mode="edge") for each in flat]
    with jax.enable_x64(dtype == "float64"):
        for start in range(0, count, BLOCK):
            values = jax.tree.leaves(program(*(jnp.asarray(each[start : start + BLOCK]) for each in padded)))
            assert all(value.dtype == dtype for value in values)
            found.append([np.asarray(value, np.float64) for value in values])
    return [np.concatenate(parts)[:count].reshape(shape) for parts in zip(*found, strict=True)]


@functools.cache
def table(sde: SDE, dtype: str) -> dict[str, np.ndarray]:
    """Every coefficient at `times(sde)`, as `compute` gives it. Of processes that were not bound to parameters."""
    return compute(sde, times(sde), dtype)


def transitions(sde: SDE, s: np.ndarray, t: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(a, G) from s to t, computed in `dtype`, as NumPy float64."""
    scale, std = _run(sde, "transition_coefficients", dtype, s, t)
    return scale, std


def even_in_log_snr(sde: SDE, count: int, lowest: float = -14.0) -> np.ndarray:
    """Increasing float64 times from t_min, even in log_snr, to T or to where log_snr is `lowest`.

    Along them every process changes at the same pace, whatever its time; e^{−14} of signal is less than any T keeps.
    """
    ends = compute(sde, np.asarray([sde.t_min, sde.T]), "float64", ["log_snr"])["log_snr"]
    (t,) = _run(sde, "time_of_log_snr", "float64", np.linspace(ends[0], max(ends[1], lowest), count))
    t[0] = sde.t_min
    if ends[1] >= lowest:
        t[-1] = sde.T
    return t


def prior_mismatch(sde, mean, std):
    """KL(p_T ‖ N(0, σ_T²)) in nats per dimension, for data N(mean, std²), from the signal-to-noise ratio at T.

    p_T = N(α m, α² s² + σ²), so with R = α_T²/σ_T² it is ½ [R (s² + m²) − log(1 + R s²)].
    """
    at = compute(sde, np.asarray([sde.T]), "float64", ["alpha", "sigma"])
    ratio = (at["alpha"][0] / at["sigma"][0]) ** 2
    return 0.5 * (ratio * (std**2 + mean**2) - np.log1p(ratio * std**2))
