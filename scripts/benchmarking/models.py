"""What the networks cost: `scripts/benchmark --models[=NAMES] [--batch=16] [--dtype=float32] [--against-torch]`.

Of each network, at a size of some millions of parameters: seconds of compiling the forward pass and a training step
(loss, gradient, Adam, one moving average), milliseconds of each, floating-point operations a second by the count of
the step's program, their share of what a large matrix product reaches here, parameters, and the step's memory.

--against-torch adds, for the networks of `torch_unet`, the ratios of forward pass, training step and 20 evaluations of
a sampler to the same architecture written plainly in PyTorch, with as many threads and in its faster memory layout. The
two are timed in turn, and the fastest of each counts: below 1 is faster than PyTorch.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from score_sde.models import NETWORKS, Network

ROUNDS, BATCH, EVALUATIONS = 5, 16, 20
IMAGE, LATENT = (32, 32, 3), (32, 32, 4)
_UNET = {"channels": 64, "channel_multipliers": (1, 2, 2), "blocks_per_resolution": 2, "dropout": 0.0}
# Settings and samples of each network, all of a few million parameters.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "ddpm": ("ddpm", _UNET, IMAGE),
    "ddpmpp": ("ncsnpp", _UNET, IMAGE),
    "ncsnpp": ("ncsnpp", {**_UNET, "embedding": "fourier", "fir": True, "progressive_input": "residual"}, IMAGE),
    "ncsn": ("ncsn", {"channels": 64}, IMAGE),
    "ncsnv2": ("ncsnv2", {"channels": 64}, IMAGE),
    "song_unet": ("song_unet", _UNET, IMAGE),
    "adm": ("adm", {**_UNET, "channel_multipliers": (1.0, 2.0, 2.0)}, IMAGE),
    "edm2": ("edm2", {**_UNET, "uncertainty_features": 0}, IMAGE),
    "dit": ("dit", {"depth": 6, "width": 256, "heads": 4, "patch": 2}, LATENT),
    "uvit": ("uvit", {"depth": 6, "width": 256, "heads": 4, "patch": 2}, LATENT),
    "mlp": ("mlp", {"width": 512, "depth": 6}, (2,)),
    "audio_unet": ("audio_unet", _UNET, (1024, 1)),
    "video_unet": ("video_unet", {**_UNET, "attention_resolutions": (8,)}, (4, 32, 32, 3)),
    "video_dit": ("video_dit", {"depth": 3, "width": 256, "heads": 4, "patch": 4}, (4, 32, 32, 3)),
}


class Programs(NamedTuple):
    """Compiled, and ready to be called without arguments."""

    forward: Callable[[], Any]
    step: Callable[[], Any]
    sample: Callable[[], Any]
    compiling: tuple[float, float]
    flops: float
    memory: int


def run(flags: argparse.Namespace) -> int:
    """The exit status."""
    batch, names = flags.batch or BATCH, flags.models.split(",") if flags.models else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        print(f"unknown networks {', '.join(unknown)}; valid: {', '.join(CASES)}")
        return 2
    peak = matrix_peak(flags.dtype)
    device = jax.devices()[0].device_kind
    print(f"{device}, batch {batch}, {flags.dtype}; a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
    print(f"{'network':11} parameters  compiling s       forward ms   step ms   GFLOP/s  of peak   memory MB")
    for name in names:
        kind, settings, shape = CASES[name]
        network = Network(NETWORKS[kind](**{**settings, "dtype": flags.dtype}), shape)
        programs = compile_all(network, batch)
        forward, step = fastest(programs.forward), fastest(programs.step)
        rate, (first, second) = programs.flops / step, programs.compiling
        costs = f"{network.size() / 1e6:8.2f} M  {first:5.1f} + {second:5.1f}   {1e3 * forward:12.1f} {1e3 * step:9.1f}"
        print(f"{name:11} {costs} {rate / 1e9:9.1f} {rate / peak:8.0%} {programs.memory / 1e6:11.0f}", flush=True)
        if flags.against_torch:
            compare(name, network, batch, programs)
    return 0


def compile_all(network: Network, batch: int) -> Programs:
    """The programs of a network on random samples."""
    params = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, *network.shape))
    noise = jnp.linspace(0.1, 900.0, batch)
    optimiser = optax.adam(1e-4)

    def forward(params, x):
        return network.apply(params, x, noise, None, train=False, rng=None)

    def step(state, x):
        params, average, moments = state
        loss = lambda params: jnp.mean(network.apply(params, x, noise, None, train=True, rng=jax.random.key(0)) ** 2)
        gradient = jax.grad(loss)(params)
        updates, moments = optimiser.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        return params, jax.tree.map(lambda a, p: 0.999 * a + 0.001 * p, average, params), moments

    def sample(params, x):
        return jax.lax.fori_loop(0, EVALUATIONS, lambda _, x: 0.9 * x + 0.1 * forward(params, x), x)

    state = [(params, jax.tree.map(jnp.copy, params), optimiser.init(params))]
    forward_program, first = timed_compile(jax.jit(forward), params, x)
    step_program, second = timed_compile(jax.jit(step, donate_argnums=0), state[0], x)
    sample_program, _ = timed_compile(jax.jit(sample), params, x)
    memory = step_program.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    kept = jax.tree.map(jnp.copy, params)

    def one_step() -> Any:
        state[0] = step_program(state[0], x)
        return state[0]

    flops = jax.jit(step).lower(state[0], x).cost_analysis()["flops"]  # before libraries' calls hide what they compute
    return Programs(
        lambda: forward_program(kept, x), one_step, lambda: sample_program(kept, x), (first, second), flops, needed
    )


def timed_compile(jitted: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def fastest(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds."""
    jax.block_until_ready(call())
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return min(found)


def matrix_peak(dtype: str) -> float:
    """FLOP/s of a matrix product in the dtype."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    return 2 * size**3 / fastest(lambda: product(a))


def compare(name: str, network: Network, batch: int, programs: Programs) -> None:
    """The ratios to PyTorch, printed."""
    try:
        from scripts.benchmarking import torch_unet
    except ImportError:
        print("            PyTorch is not installed: no ratio")
        return
    if name not in torch_unet.NETWORKS:
        return
    others = torch_unet.programs(name, network.settings, network.shape, batch, EVALUATIONS)
    parts = []
    for which, ours in (("forward", programs.forward), ("step", programs.step), ("sample", programs.sample)):
        pairs = [(fastest(ours, 1), torch_unet.fastest(getattr(others, which), 1)) for _ in range(ROUNDS)]
        mine, theirs = (min(pair[i] for pair in pairs) for i in (0, 1))
        parts.append(f"{which} {mine / theirs:.2f} ({1e3 * mine:.0f} and {1e3 * theirs:.0f} ms)")
    print(f"            to PyTorch, {others.layout}, {others.parameters / 1e6:.2f} M: {', '.join(parts)}", flush=True)
