"""Every network of the battery, small. A newcomer adds its line to `SMALL`, and joins all the tests of test_models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.models import NETWORKS, Network
from score_sde.models.conditioning import SETTING

# Small settings of each network, and the shapes of two kinds of samples that it takes.
SMALL = {
    "ncsnpp": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
            "dropout": 0.3,
        },
        ((8, 8, 2), (8, 12, 2)),
    ),
    "ddpm": (
        {
            "channels": 32,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
            "dropout": 0.3,
        },
        ((8, 8, 2), (8, 12, 2)),
    ),
    "ncsn": ({"channels": 8, "noise_levels": 5}, ((8, 8, 2), (8, 12, 2))),
    "ncsnv2": ({"channels": 8, "noise_levels": 5, "sigma_min": 0.5, "sigma_max": 2.0}, ((8, 8, 2), (8, 12, 2))),
    "dit": ({"depth": 2, "width": 16, "heads": 2}, ((4, 6, 2), (8, 4, 2))),
    "mlp": ({"depth": 2, "width": 16}, ((2,), (5,))),
    "audio_unet": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_levels": 1,
            "dropout": 0.3,
        },
        ((8, 2), (12, 2)),
    ),
    "video_unet": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (2,),
            "dropout": 0.3,
        },
        ((3, 4, 4, 2), (2, 4, 6, 2)),
    ),
    "uvit": ({"depth": 2, "width": 16, "heads": 2}, ((4, 6, 2), (8, 4, 2))),
    "video_dit": ({"depth": 1, "width": 16, "heads": 2}, ((3, 4, 4, 2), (2, 4, 6, 2))),
    "song_unet": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
            "dropout": 0.3,
        },
        ((8, 8, 2), (8, 12, 2)),
    ),
    "edm2": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
            "channels_per_head": 8,
            "uncertainty_features": 0,
            "dropout": 0.3,
        },
        ((8, 8, 2), (8, 12, 2)),
    ),
    "adm": (
        {
            "channels": 32,
            "channel_multipliers": (1.0, 2.0),
            "blocks_per_resolution": 1,
            "attention_resolutions": (),
            "head_channels": 16,
            "dropout": 0.3,
        },
        ((8, 8, 2), (8, 12, 2)),
    ),
}
# Choices that change the network, tested one by one against its small settings.
PYRAMID = {"fir": True, "embedding": "fourier"}
VARIANTS = {
    "ncsnpp": [
        {},
        {"embedding": "log_fourier", "fir": True, "progressive_input": "residual", "scale_by_sigma": True},
        {"progressive": "output_skip", "progressive_input": "input_skip", **PYRAMID},
        {"progressive": "residual", "progressive_input": "input_skip", "progressive_combine": "cat", **PYRAMID},
        {"block": "ddpm", "skip_rescale": False, "fir": True, "scale_by_sigma": True, "centered": False},
        {"block": "ddpm", "resample_convolution": False},
        {"channels": 10, "activation": "lrelu"},
    ],
    "dit": [{}, {"positions": "rotary"}],
    "audio_unet": [{}, {"block": "ddpm", "fir": True}],
    "uvit": [{}, {"positions": "rotary", "final_convolution": False}],
    "mlp": [{}, {"fourier_features": 6, "modulation": "add", "embedding": "fourier", "fourier_scale": 1.0}],
    "song_unet": [
        {},
        {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "resample_filter": (1.0, 3.0, 3.0, 1.0)},
    ],
    "adm": [
        {},
        {
            "scale_shift_norm": False,
            "resample_blocks": False,
            "attention_resolutions": (4,),
            "attention_order": "new",
            "head_channels": 0,
            "channels": 16,
            "channels_per_group": 4,
            "embedding_multiplier": 2,
        },
    ],
}
# Networks whose paper does not begin at an output of nearly zero.
NOT_ZERO_AT_FIRST = {"ncsn", "ncsnv2", "uvit"}
# Networks without dropout.
NO_DROPOUT = {"ncsn", "ncsnv2", "dit", "video_dit", "uvit", "mlp"}
# For the one test that runs without jit, where every operation is compiled by itself.
SMALLEST = {
    "ncsnpp": {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.0},
    "ddpm": {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.0},
    "dit": {"depth": 1},
    "audio_unet": {"channel_multipliers": (1,), "attention_levels": 0, "dropout": 0.0},
    "video_unet": {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.0},
    "song_unet": {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.0},
    "edm2": {"channel_multipliers": (1,), "attention_resolutions": (), "dropout": 0.0},
    "adm": {"channel_multipliers": (1.0,), "attention_resolutions": (), "dropout": 0.0},
}
# The widths of small conditions, and what each network may be told; all, unless it is here.
WIDTHS = {"label": 4, "vector": 3, "tokens": 5, "image": 2, "augment": 3}
CONDITIONS = {name: tuple(SETTING) for name in NETWORKS}
BATCH = 3

# Compiling takes longer than running at these sizes.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

CASES = [(name, tuple(variant.items())) for name in NETWORKS for variant in VARIANTS.get(name, [{}])]


@functools.cache
def network(name, variant=(), shape=0):
    settings, shapes = SMALL[name]
    return Network(NETWORKS[name](**{**settings, **dict(variant)}), shapes[shape])


@functools.cache
def init(name, variant=()):
    """Jitted key -> parameters."""
    return quick_jit(network(name, variant).init)


@functools.cache
def initial(name, variant=()):
    return init(name, variant)(jax.random.key(0))


@functools.cache
def moved(name, variant=(), shape=0):
    """Parameters off their initial values, where nothing is zero any more, and each about as large as in training."""
    return moved_params(network(name, variant, shape).parameters())


def moved_params(parameters):
    """The same of what `parameters` of a network or a classifier gives."""
    generator, params = np.random.default_rng(1), {}
    for path, known in parameters.items():
        inputs = np.prod(known.shape[:-1]) if len(known.shape) > 1 else 25.0
        value = generator.normal(size=known.shape) / np.sqrt(inputs) + (path[-1] == "scale")
        *folders, last = path
        place = functools.reduce(lambda node, key: node.setdefault(key, {}), folders, params)
        place[last] = jnp.asarray(value, jnp.float32)
    return params


@functools.cache
def apply(name, variant=(), train=False, shape=0):
    """Jitted (params, x, noise_condition, rng, condition) -> output."""
    of = network(name, variant, shape)
    return quick_jit(lambda params, x, c, rng, condition=None: of.apply(params, x, c, condition, train=train, rng=rng))


@functools.cache
def value_and_gradient(name, variant):
    """Of a loss, told all that the network can be told; one sample without it, so that what is for that learns too."""
    x, noise = inputs(name)
    told, of = {**condition(name), "drop": jnp.arange(BATCH) == 1}, network(name, variant)
    loss = lambda params: jnp.sum(jnp.sin(of.apply(params, x, noise, told, train=False, rng=None)))
    return quick_jit(jax.value_and_grad(loss))(moved(name, variant))


def inputs(name, batch=BATCH, shape=0):
    x = jax.random.normal(jax.random.key(2), (batch, *SMALL[name][1][shape]))
    return x, jax.numpy.linspace(0.1, 3.0, batch)


def conditioned(name):
    """Settings that let the network take every condition that it can."""
    return tuple((SETTING[key], WIDTHS[key]) for key in CONDITIONS[name])


def condition(name, batch=BATCH):
    """One of each kind that the network can take."""
    keys, space = jax.random.split(jax.random.key(4), 4), SMALL[name][1][0][:-1]
    full = {
        "label": jax.numpy.arange(batch) % WIDTHS["label"],
        "vector": jax.random.normal(keys[0], (batch, WIDTHS["vector"])),
        "tokens": jax.random.normal(keys[1], (batch, 6, WIDTHS["tokens"])),
        "image": jax.random.normal(keys[2], (batch, *space, WIDTHS["image"])),
        "augment": jax.random.normal(keys[3], (batch, WIDTHS["augment"])),
    }
    return {key: full[key] for key in CONDITIONS[name]}
