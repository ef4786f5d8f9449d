"""One battery over every network, as the pure functions in which it leaves `models`."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network
from score_sde.models.layers import GroupNorm, downsample, positional_embedding, upsample

# Small settings of each network, and the samples it takes; a newcomer adds a line, and joins all that follows.
SMALL = {
    "ncsnpp": (
        {
            "channels": 8,
            "channel_multipliers": (1, 2),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
            "dropout": 0.3,
        },
        (8, 8, 2),
    ),
}
# Parameters that are fixed by design: random features.
FIXED = re.compile("frequency")
# Choices that change the network, tested one by one against its small settings.
VARIANTS = {"ncsnpp": [{}, {"embedding": "fourier"}]}
# For the one test that runs without jit, where every operation is compiled by itself.
SMALLEST = {"ncsnpp": (("channel_multipliers", (1,)), ("attention_resolutions", ()), ("dropout", 0.0))}

CASES = [(name, tuple(variant.items())) for name in NETWORKS for variant in VARIANTS.get(name, [{}])]
case = pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{name}-{dict(v)}" for name, v in CASES])
named = pytest.mark.parametrize("name", list(NETWORKS))
BATCH = 3


@functools.cache
def _network(name, variant=()):
    settings, shape = SMALL[name]
    return Network(NETWORKS[name](**{**settings, **dict(variant)}), shape)


@functools.cache
def _init(name, variant=()):
    return jax.jit(_network(name, variant).init)(jax.random.key(0))


@functools.cache
def _moved(name, variant=()):
    """Parameters off their initial values, where nothing is zero any more."""
    leaves, tree = jax.tree.flatten(_init(name, variant))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    move = lambda leaf, key: (
        leaf + 0.2 * jax.random.normal(key, leaf.shape) / np.sqrt(max(1, leaf.size // leaf.shape[-1]))
    )
    return jax.tree.unflatten(tree, [move(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


@functools.cache
def _apply(name, variant=(), train=False):
    """Jitted (params, x, noise_condition, rng) -> output."""
    network = _network(name, variant)
    return jax.jit(lambda params, x, c, rng: network.apply(params, x, c, None, train=train, rng=rng))


def _inputs(name, batch=BATCH):
    x = jax.random.normal(jax.random.key(2), (batch, *SMALL[name][1]))
    return x, jnp.linspace(0.1, 3.0, batch)


@case
def test_shape_and_dtype(name, variant):
    x, condition = _inputs(name)
    output = _apply(name, variant)(_init(name, variant), x, condition, None)
    assert output.shape == x.shape
    assert output.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(_init(name, variant)))


@case
def test_the_output_at_init_is_nearly_zero_but_has_a_gradient(name, variant):
    """The last layer's variance is 1e-10 of the usual: outputs of size 1e-5, and not zero."""
    x, condition = _inputs(name)
    output = _apply(name, variant)(_init(name, variant), x, condition, None)
    assert 0 < float(jnp.abs(output).max()) < 1e-4


@named
def test_jit_is_eager(name):
    x, condition = _inputs(name, 1)
    network, params = _network(name, SMALLEST.get(name, ())), _moved(name, SMALLEST.get(name, ()))
    eager = network.apply(params, x, condition, None, train=False, rng=None)
    # float32, fused differently through some tens of layers.
    jitted = _apply(name, SMALLEST.get(name, ()))(params, x, condition, None)
    np.testing.assert_allclose(jitted, eager, rtol=0, atol=1e-4)


@case
def test_a_sample_does_not_see_its_batch(name, variant):
    x, condition = _inputs(name)
    params, apply = _moved(name, variant), _apply(name, variant)
    together = apply(params, x, condition, None)
    changed = apply(params, x.at[1:].multiply(-2.0), condition.at[1:].add(1.0), None)
    np.testing.assert_allclose(changed[0], together[0], rtol=0, atol=1e-5 * float(jnp.abs(together).max()))
    assert float(jnp.abs(changed[1] - together[1]).max()) > 1e-2


@case
def test_the_noise_condition_matters(name, variant):
    x, condition = _inputs(name)
    params, apply = _moved(name, variant), _apply(name, variant)
    difference = apply(params, x, condition, None) - apply(params, x, condition + 1.0, None)
    assert np.all(np.abs(difference).max(axis=(1, 2, 3)) > 1e-3)


@case
def test_every_parameter_has_a_gradient(name, variant):
    x, condition = _inputs(name)
    network = _network(name, variant)
    loss = lambda params: jnp.sum(jnp.sin(network.apply(params, x, condition, None, train=False, rng=None)))
    gradient = jax.jit(jax.grad(loss))(_moved(name, variant))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        label = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), label
        assert np.any(np.asarray(leaf) != 0) != bool(FIXED.search(label)), label


@named
def test_dropout_acts_in_training_alone(name):
    x, condition = _inputs(name)
    params, train, test = _moved(name), _apply(name, train=True), _apply(name)
    one, two = jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(train(params, x, condition, one), train(params, x, condition, one))
    assert not np.array_equal(train(params, x, condition, one), train(params, x, condition, two))
    np.testing.assert_array_equal(test(params, x, condition, one), test(params, x, condition, None))


@named
def test_without_dropout_training_is_testing(name):
    x, condition = _inputs(name)
    variant = (("dropout", 0.0),)
    key = jax.random.key(3)
    trained = _apply(name, variant, train=True)(_moved(name), x, condition, key)
    # float32, fused differently: dropout at rate 0 leaves the program.
    np.testing.assert_allclose(trained, _apply(name)(_moved(name), x, condition, None), rtol=0, atol=1e-5)


@named
def test_bfloat16_is_close_to_float32(name):
    """bfloat16 has 8 bits: 0.4 % an operation, a few percent through some tens of layers; parameters stay float32."""
    x, condition = _inputs(name)
    variant = (("dtype", "bfloat16"),)
    shapes = jax.eval_shape(_network(name, variant).init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention itself promotes bfloat16 to float32
        half = _apply(name, variant)(_moved(name), x, condition, None)
    full = _apply(name)(_moved(name), x, condition, None)
    assert half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    assert 0 < error < 0.05


@named
def test_init_is_its_key_and_traceable(name):
    network = _network(name)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    same, other = jax.jit(network.init)(jax.random.key(0)), jax.jit(network.init)(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, _init(name))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), same)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(other), strict=True))


def test_eval_shape_of_init_computes_nothing():
    """A network of over 10¹² parameters, which no machine here could hold."""
    settings = NETWORKS["ncsnpp"](
        channels=2**17, channel_multipliers=(1,), blocks_per_resolution=1, attention_resolutions=()
    )
    shapes = jax.eval_shape(Network(settings, (8, 8, 3)).init, jax.random.key(0))
    assert sum(np.prod(leaf.shape, dtype=float) for leaf in jax.tree.leaves(shapes)) > 1e12


# --- ncsnpp's own --------------------------------------------------------------------------------------------------


def test_wrong_shapes_are_refused_with_the_nearest_right_one():
    settings = NETWORKS["ncsnpp"](channel_multipliers=(1, 2, 2))
    with pytest.raises(UserError, match="not 30x33; the nearest is 32x32"):
        Network(settings, (30, 33, 3))
    with pytest.raises(UserError, match="nearest is 4x4"):
        Network(settings, (1, 2, 3))
    with pytest.raises(UserError, match=r"\(height, width, channels\)"):
        Network(settings, (32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 10}, "channels"),
        ({"channels": 4}, "channels"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"channel_multipliers": (1, 0)}, "channel_multipliers"),
        ({"blocks_per_resolution": 0}, "blocks_per_resolution"),
        ({"classes": -1}, "classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"embedding": "furier"}, "did you mean 'fourier'"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        NETWORKS["ncsnpp"](**settings)


def test_a_condition_is_refused_without_classes():
    x, condition = _inputs("ncsnpp")
    with pytest.raises(UserError, match="classes=0 takes no condition"):
        _network("ncsnpp").apply(_init("ncsnpp"), x, condition, {"label": jnp.zeros(3)}, train=False, rng=None)


def test_labels_matter_and_no_label_is_label_minus_one():
    variant = (("classes", 4), ("attention_resolutions", ()), ("channel_multipliers", (1,)))
    network, params = _network("ncsnpp", variant), _moved("ncsnpp", variant)
    assert params["label"]["embedding"].shape == (5, 32)  # a row for each, and one for none
    x, condition = _inputs("ncsnpp")
    x, condition = (jnp.repeat(values[:1], 6, axis=0) for values in (x, condition))
    apply = jax.jit(lambda x, c, label: network.apply(params, x, c, label, train=False, rng=None))
    labels = jnp.asarray([-1, 0, 1, 2, 3, -1], jnp.int32)
    output = np.asarray(apply(x, condition, {"label": labels}))
    # Separate programs of the same float32 operations.
    np.testing.assert_allclose(apply(x, condition, None), output[[0] * 6], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output[5], output[0], rtol=0, atol=1e-6)
    for one in range(5):
        for two in range(one):
            assert np.abs(output[one] - output[two]).max() > 1e-3, (one, two)


def test_the_fourier_embedding_has_fixed_random_frequencies_and_the_positional_none():
    count = lambda params: sum(
        bool(FIXED.search(jax.tree_util.keystr(path))) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    )
    assert count(_init("ncsnpp")) == 0
    assert count(_init("ncsnpp", (("embedding", "fourier"),))) == 1
    scaled = NETWORKS["ncsnpp"](**{**SMALL["ncsnpp"][0], "embedding": "fourier", "channels": 64, "fourier_scale": 5.0})
    frequency = jax.jit(Network(scaled, (8, 8, 1)).init)(jax.random.key(0))["fourier"]["frequency"]
    assert frequency.shape == (32,)
    # The standard deviation of 32 draws: 5 of its standard errors 1/√64.
    assert abs(float(jnp.std(frequency)) / 5 - 1) < 5 / np.sqrt(64)


def test_the_positional_embedding_turns_at_its_frequencies():
    """sin² + cos² = 1; frequencies fall geometrically from 1 to 1/10000."""
    t = np.array([0.0, 0.5, 700.0])
    embedding = np.asarray(positional_embedding(jnp.asarray(t, jnp.float32), 8), np.float64)
    sin, cos = embedding[:, :4], embedding[:, 4:]
    np.testing.assert_allclose(sin**2 + cos**2, 1, atol=1e-6)
    np.testing.assert_allclose(sin[1], np.sin(0.5 * 10000.0 ** -np.array([0, 1 / 3, 2 / 3, 1])), atol=1e-6)
    # At t = 700 a float32 frequency's rounding is a phase of 700 · 6e-8.
    np.testing.assert_allclose(cos[2], np.cos(700 * 10000.0 ** -np.array([0, 1 / 3, 2 / 3, 1])), atol=2e-4)


def test_group_norm_normalises_each_group():
    """Mean 0 and variance 1 over a group, even where the mean is 1000 times the spread."""
    x = 1000 + jax.random.normal(jax.random.key(0), (2, 6, 6, 16))
    normalised = np.asarray(jax.jit(GroupNorm(16, dtype=jnp.float32))(x)).reshape(2, 36, 4, 4)
    # A float32 near 1000 is known to 6e-5: a mean is off by a few of those.
    np.testing.assert_allclose(normalised.mean(axis=(1, 3)), 0, atol=3e-4)
    np.testing.assert_allclose(normalised.var(axis=(1, 3)), 1, atol=1e-3)


def test_down_undoes_up():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    up = upsample(x)
    assert up.shape == (2, 6, 8, 5)
    np.testing.assert_array_equal(up[:, 1::2, ::2], x)
    np.testing.assert_allclose(downsample(up), x, rtol=1e-6)


def test_settings_are_hashable_and_frozen():
    settings, _ = SMALL["ncsnpp"]
    assert hash(NETWORKS["ncsnpp"](**settings)) == hash(NETWORKS["ncsnpp"](**settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORKS["ncsnpp"]().channels = 3  # type: ignore[misc]
