"""One battery over every network, as the pure functions in which it leaves `models`; see networks.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.errors import UserError
from score_sde.models import NETWORKS, Network, attention
from score_sde.models.conditioning import ConditionEmbedding, Conditions
from score_sde.models.layers import GroupNorm, conv, convolve_upsampled, pointwise, positional_embedding
from score_sde.models.resample import downsample, upsample, upsample_convolve
from tests.networks import (
    BATCH,
    CASES,
    NO_DROPOUT,
    NOT_ZERO_AT_FIRST,
    SMALL,
    SMALLEST,
    apply,
    condition,
    conditioned,
    init,
    initial,
    inputs,
    moved,
    network,
    quick_jit,
    value_and_gradient,
)

case = pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{name}-{dict(v)}" for name, v in CASES])
named = pytest.mark.parametrize("name", list(NETWORKS))


def close(one, two, share):
    """Equal to a share of the largest value."""
    np.testing.assert_allclose(one, two, rtol=0, atol=share * float(jnp.abs(two).max()))


@case
def test_shape_and_dtype(name, variant):
    x, noise = inputs(name)
    output = apply(name, variant)(moved(name, variant), x, noise, None)
    assert output.shape == x.shape
    assert output.dtype == jnp.float32
    assert np.all(np.isfinite(output))


@named
def test_another_resolution_and_another_batch(name):
    x, noise = inputs(name, batch=1, shape=1)
    output = apply(name, shape=1)(moved(name, shape=1), x, noise, None)
    assert output.shape == x.shape
    assert np.all(np.isfinite(output))


@case
def test_the_output_at_init_is_nearly_zero(name, variant):
    """The last layer is zero, or has 1e-10 of the usual variance: outputs of size 1e-5, and not zero."""
    x, noise = inputs(name)
    output = apply(name, variant)(initial(name, variant), x, noise, None)
    least_sigma = float(noise.min()) if dict(variant).get("scale_by_sigma") else 1.0  # what the output is divided by
    assert (float(jnp.abs(output).max()) < 1e-4 / least_sigma) != (name in NOT_ZERO_AT_FIRST)


@named
def test_jit_is_eager(name):
    x, noise = inputs(name, 1)
    variant = tuple(SMALLEST.get(name, {}).items())
    eager = network(name, variant).apply(moved(name, variant), x, noise, None, train=False, rng=None)
    # float32, fused differently through some tens of layers.
    close(apply(name, variant)(moved(name, variant), x, noise, None), eager, 2e-5)


@case
def test_a_sample_does_not_see_its_batch(name, variant):
    x, noise = inputs(name)
    params, of = moved(name, variant), apply(name, variant)
    together = of(params, x, noise, None)
    changed = of(params, x.at[1:].multiply(-2.0), noise.at[1:].add(1.0), None)
    close(changed[0], together[0], 1e-5)
    assert float(jnp.abs(changed[1] - together[1]).max()) > 1e-3 * float(jnp.abs(together).max())


@case
def test_the_noise_condition_matters(name, variant):
    x, noise = inputs(name)
    params, of = moved(name, variant), apply(name, variant)
    one, two = of(params, x, noise, None), of(params, x, noise + 1.0, None)
    assert np.all(np.abs(one - two).reshape(BATCH, -1).max(axis=1) > 1e-4 * float(jnp.abs(one).max()))


@case
def test_every_parameter_has_a_gradient_unless_it_is_fixed(name, variant):
    variant = (*variant, *conditioned(name))
    known, (_, gradient) = network(name, variant).parameters(), value_and_gradient(name, variant)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        names = tuple(part.key for part in path)
        assert np.all(np.isfinite(leaf)), names
        assert np.any(np.asarray(leaf) != 0) == known[names].trainable, names


@case
def test_parameters_are_known_without_computing_them(name, variant):
    """Shapes are those of `init`, and every axis has a name or None."""
    known = network(name, variant).parameters()
    flat = jax.tree_util.tree_flatten_with_path(jax.eval_shape(network(name, variant).init, jax.random.key(0)))[0]
    assert all(leaf.dtype == jnp.float32 for _, leaf in flat)
    assert len(flat) == len(known)
    for path, leaf in flat:
        each = known[tuple(part.key for part in path)]
        assert each.shape == leaf.shape, path
        assert len(each.axes) == leaf.ndim, path
        assert set(each.axes) <= {None, "in", "out", "heads", "mlp", "channels", "table", "tokens"}, path
    assert network(name, variant).size() == sum(leaf.size for _, leaf in flat)


@named
def test_each_condition_matters_and_dropping_all_is_not_giving_any(name):
    """In one program for all of them; that one absent is as one dropped is `ConditionEmbedding`'s, tested below."""
    variant, (x, noise), told = conditioned(name), inputs(name), condition(name)
    params, of = moved(name, variant), apply(name, variant)
    if "tokens" in told:
        told["mask"] = jnp.broadcast_to(jnp.arange(6) < 4, (BATCH, 6))
    call = lambda drop=(False,) * BATCH, **other: of(params, x, noise, None, {**told, **other, "drop": jnp.array(drop)})
    nothing, given = of(params, x, noise, None, None), call()
    size = float(jnp.abs(given).max())
    for key in condition(name):
        changed = (told[key] + 1) % 4 if key == "label" else told[key] + 1.0
        assert np.all(np.abs(call(**{key: changed}) - given).reshape(BATCH, -1).max(axis=1) > 1e-5 * size), key
    half = call(drop=(False, True, False))
    close(half[1], nothing[1], 1e-5)
    close(half[2], given[2], 1e-5)
    if "tokens" in told:
        close(call(tokens=told["tokens"].at[:, 4:].set(jnp.nan)), given, 1e-6)


@named
def test_a_condition_is_refused_without_its_setting(name):
    x, noise = inputs(name)
    for told, message in (({"label": jnp.zeros(BATCH, int)}, "classes=0"), ({"lable": 1}, "unknown condition lable")):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda told=told: network(name).apply(moved(name), x, noise, told, train=False, rng=None))


@named
def test_a_condition_of_a_wrong_shape_is_refused(name):
    """Nothing is stretched or repeated: that would mix samples."""
    x, noise = inputs(name)
    of, right = network(name, conditioned(name)), condition(name)
    space = SMALL[name][1][0][:-1]
    mask = jnp.ones((BATCH, 6), bool)
    wrong = [
        ({"label": jnp.zeros(1, int)}, r"'label' must be of shape \(3\), not \(1,\)"),
        ({"label": jnp.zeros(BATCH)}, "'label' must be integers, not float32"),
        ({"vector": jnp.zeros((BATCH, 1))}, r"'vector' must be of shape \(3, 3\)"),
        ({"augment": jnp.zeros((1, 3))}, r"'augment' must be of shape \(3, 3\)"),
        ({"tokens": jnp.zeros((BATCH, 6, 1))}, r"'tokens' must be of shape \(3, any, 5\)"),
        ({"tokens": right["tokens"], "mask": mask[:, :1]}, r"'mask' must be of shape \(3, 6\), not \(3, 1\)"),
        ({"mask": mask}, "mask needs tokens"),
        ({"image": jnp.zeros((1, *space, 2))}, "'image' must be of shape"),
        ({"image": jnp.zeros((BATCH, *space, 1))}, "'image' must be of shape"),
        ({"drop": jnp.zeros(1, bool)}, r"'drop' must be of shape \(3\)"),
        ({"drop": jnp.zeros(BATCH, int)}, "'drop' must be booleans"),
    ]
    params = jax.eval_shape(of.init, jax.random.key(0))
    for told, message in wrong:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda params, told=told: of.apply(params, x, noise, told, train=False, rng=None), params)


@named
def test_a_sample_has_something_on_every_axis(name):
    settings, (shape, _) = SMALL[name]
    for axis in range(len(shape)):
        with pytest.raises(UserError, match="at least 1 long on every axis"):
            Network(NETWORKS[name](**settings), (*shape[:axis], 0, *shape[axis + 1 :]))


@named
def test_an_error_of_shape_names_the_network(name):
    settings, (shape, _) = SMALL[name]
    halved = len(settings.get("channel_multipliers", ())) > 1
    for wrong in [(*shape, 2), *([(*shape[:-2], shape[-2] + 1, shape[-1])] if halved else [])]:
        with pytest.raises(UserError, match=f"^{name} "):
            Network(NETWORKS[name](**settings), wrong)


@named
def test_remat_and_chunked_attention_change_nothing(name, monkeypatch):
    variant = conditioned(name)
    plain = value_and_gradient(name, variant)
    monkeypatch.setattr(attention, "CHUNK", 3)
    other = value_and_gradient(name, (*variant, ("remat", "blocks")))
    np.testing.assert_allclose(other[0], plain[0], rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), other[1], plain[1])


@named
def test_dropout_acts_in_training_alone(name):
    if name in NO_DROPOUT:
        pytest.skip(f"{name} has no dropout")
    x, noise = inputs(name)
    params, train, test = moved(name), apply(name, train=True), apply(name)
    one, two = jax.random.split(jax.random.key(3))
    np.testing.assert_array_equal(train(params, x, noise, one), train(params, x, noise, one))
    assert not np.array_equal(train(params, x, noise, one), train(params, x, noise, two))
    np.testing.assert_array_equal(test(params, x, noise, one), test(params, x, noise, None))


@named
def test_bfloat16_is_close_to_float32(name):
    """bfloat16 has 8 bits: 0.4 % an operation, a few percent through some tens of layers; parameters stay float32."""
    x, noise = inputs(name)
    variant = (("dtype", "bfloat16"), *conditioned(name))
    shapes = jax.eval_shape(network(name, variant).init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    params, told = moved(name, conditioned(name)), condition(name)
    half = apply(name, variant)(params, x, noise, None, told)
    full = apply(name, conditioned(name))(params, x, noise, None, told)
    assert half.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.mean((half - full) ** 2) / jnp.mean(full**2)))
    assert 0 < error < 0.05


@named
def test_init_is_its_key_and_traceable(name):
    of = network(name)
    shapes = jax.eval_shape(of.init, jax.random.key(0))
    same, other = init(name)(jax.random.key(0)), init(name)(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, same, initial(name))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), same)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(other), strict=True))


@named
def test_settings_are_hashable_and_frozen(name):
    settings = SMALL[name][0]
    assert hash(NETWORKS[name](**settings)) == hash(NETWORKS[name](**settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        NETWORKS[name](**settings).dtype = "bfloat16"  # type: ignore[misc]


def test_eval_shape_of_init_computes_nothing():
    """A network of over 10¹² parameters, which no machine here could hold."""
    settings = NETWORKS["ncsnpp"](
        channels=2**17, channel_multipliers=(1,), blocks_per_resolution=1, attention_resolutions=()
    )
    shapes = jax.eval_shape(Network(settings, (8, 8, 3)).init, jax.random.key(0))
    assert sum(np.prod(leaf.shape, dtype=float) for leaf in jax.tree.leaves(shapes)) > 1e12


# --- conditions -----------------------------------------------------------------------------------------------------


class Told(nnx.Module):
    """Nothing but the embedding of a condition."""

    def __init__(self):
        settings = Conditions(classes=4, vector_features=3, token_features=5, image_channels=2)
        self.embedding = ConditionEmbedding(settings, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
        self.embedding.null_vector[...] = jnp.ones(3)

    def __call__(self, told):
        x = jnp.ones((2, 4, 4, 1))
        return [self.embedding.features(told, 2), *self.embedding.tokens(told, 2), self.embedding.with_image(x, told)]


def equal(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, two)


def test_what_is_absent_is_as_what_is_dropped():
    told, full = Told(), {"label": jnp.array([1, 3]), "vector": jnp.zeros((2, 3)), "image": jnp.ones((2, 2, 2, 2))}
    equal(told({**full, "drop": jnp.array([True, True])}), told(None))
    for key in full:
        without = {name: value for name, value in full.items() if name != key}
        of = {"label": 0, "vector": 0, "image": 3}[key]
        dropped = told({key: full[key], "drop": jnp.array([True, True])})[of]
        equal(dropped, told(None)[of])
        assert not np.allclose(told(full)[of], told(without)[of])
    equal(told({"label": jnp.array([-1, -1])}), told(None))


def test_labels_that_are_none_of_the_classes_are_no_label():
    told = Told()
    for label in (-2, -1, 4, 100):
        equal(told({"label": jnp.array([label, 1])})[0], told({"label": jnp.array([-1, 1])})[0])
    assert not np.allclose(told({"label": jnp.array([0, 3])})[0], told(None)[0])


def test_tokens_that_are_masked_or_dropped_are_zeros_that_do_not_count():
    tokens, told = jnp.full((2, 3, 5), jnp.nan).at[:, 0].set(1.0), Told()
    _, values, counts, _ = told({"tokens": tokens, "mask": jnp.array([[True, False, False]] * 2)})
    np.testing.assert_array_equal(counts, [[True, True, False, False]] * 2)
    assert np.all(np.isfinite(values))
    _, values, counts, _ = told({"tokens": tokens, "drop": jnp.array([True, True])})
    np.testing.assert_array_equal(counts, [[True, False, False, False]] * 2)
    assert np.all(np.isfinite(values))


def test_attention_over_masked_keys_is_attention_without_them():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 6, 2, 4)) for i in range(3))
    mask = jnp.broadcast_to(jnp.arange(6) < 4, (2, 6))
    equal(attention.attend(q, k, v, mask), attention.attend(q, k[:, :4], v[:, :4]))


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
        ({"channels": 3}, "channels must be at least 4"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
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


def test_labels_matter_and_no_label_is_label_minus_one():
    variant = (("classes", 4), ("attention_resolutions", ()), ("channel_multipliers", (1,)))
    of, params = network("ncsnpp", variant), moved("ncsnpp", variant)
    assert params["condition"]["label"]["embedding"].shape == (5, 32)  # a row for each, and one for none
    x, condition = inputs("ncsnpp")
    x, condition = (jnp.repeat(values[:1], 6, axis=0) for values in (x, condition))
    apply = jax.jit(lambda x, c, label: of.apply(params, x, c, label, train=False, rng=None))
    labels = jnp.asarray([-1, 0, 1, 2, 3, -1], jnp.int32)
    output = np.asarray(apply(x, condition, {"label": labels}))
    # Separate programs of the same float32 operations.
    np.testing.assert_allclose(apply(x, condition, None), output[[0] * 6], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output[5], output[0], rtol=0, atol=1e-6)
    for one in range(5):
        for two in range(one):
            assert np.abs(output[one] - output[two]).max() > 1e-3, (one, two)


def test_the_fourier_embedding_has_fixed_random_frequencies_and_the_positional_none():
    fixed = lambda variant: [
        path for path, each in network("ncsnpp", variant).parameters().items() if not each.trainable
    ]
    assert fixed(()) == []
    assert fixed((("embedding", "fourier"),)) == [("fourier", "frequency")]
    scaled = NETWORKS["ncsnpp"](**{**SMALL["ncsnpp"][0], "embedding": "fourier", "channels": 64, "fourier_scale": 5.0})
    frequency = quick_jit(Network(scaled, (8, 8, 1)).init)(jax.random.key(0))["fourier"]["frequency"]
    assert frequency.shape == (64,)
    # The standard deviation of 64 draws: 5 of its standard errors 1/√128.
    assert abs(float(jnp.std(frequency)) / 5 - 1) < 5 / np.sqrt(128)


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


@pytest.mark.parametrize("sides", [(5,), (4, 6), (2, 3, 4)])
def test_a_convolution_after_upsampling_is_computed_before_it(sides):
    space = len(sides)
    key_x, key_kernel = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (2, *sides, 3))
    kernel = jax.random.normal(key_kernel, (*(3,) * space, 3, 4))
    layout = "NWHD"[: space + 1] + "C"
    numbers = (layout, layout[1:-1] + "IO", layout)
    plain = jax.lax.conv_general_dilated(upsample(x), kernel, (1,) * space, "SAME", dimension_numbers=numbers)
    close(upsample_convolve(x, kernel, x.dtype), plain, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layers_of_pixels_are_what_they_say(dtype):
    """An upsampled convolution with its offset; a linear map of channels."""
    rngs = nnx.Rngs(0)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    layer = conv(8, 4, 3, dtype=dtype, rngs=rngs)
    layer.bias[...] = jnp.arange(4.0)
    share = 1e-6 if dtype == jnp.float32 else 2e-2
    close(convolve_upsampled(layer, x).astype(jnp.float32), layer(upsample(x)).astype(jnp.float32), share)
    linear = pointwise(8, 4, dtype=jnp.float32, rngs=rngs)
    close(linear(x), x @ linear.kernel[...], 1e-6)


def test_down_undoes_up():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    up = upsample(x)
    assert up.shape == (2, 6, 8, 5)
    np.testing.assert_array_equal(up[:, 1::2, ::2], x)
    np.testing.assert_allclose(downsample(up), x, rtol=1e-6)
