"""Initial values against those of flax, drawn one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.models import NETWORKS, Network, initializers
from tests import networks

OURS_AND_THEIRS = {
    "normal": (initializers.normal(0.02), nnx.initializers.normal(0.02)),
    "uniform": (initializers.uniform(0.5), lambda key, shape: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)),
    **{
        f"{mode} {distribution}": (
            initializers.variance_scaling(2.0, mode, distribution),
            nnx.initializers.variance_scaling(2.0, mode, distribution),
        )
        for mode in ("fan_in", "fan_out", "fan_avg")
        for distribution in ("uniform", "normal", "truncated_normal")
    },
}


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (5, 7)])
@pytest.mark.parametrize("name", OURS_AND_THEIRS)
def test_numbers_are_those_of_flax(name, shape):
    ours, theirs = (init(jax.random.key(0), shape) for init in OURS_AND_THEIRS[name])
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, theirs)  # bit for bit: a classifier trained on demand comes out the same


@pytest.mark.parametrize(("name", "large"), [("uvit", initializers.LARGE), ("uvit", 50), ("mlp", initializers.LARGE)])
def test_a_network_drawn_at_once_is_that_drawn_by_one_key_after_the_other(name, large, monkeypatch):
    monkeypatch.setattr(initializers, "LARGE", large)
    options, (shape, _) = networks.SMALL[name]
    settings, key = NETWORKS[name](**options, classes=3), jax.random.key(1)
    at_once = jax.jit(Network(settings, shape).init)(key)
    one_by_one = jax.jit(lambda: nnx.to_pure_dict(nnx.state(settings.build(shape, nnx.Rngs(key)), nnx.Param)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), at_once, one_by_one)


def test_arrays_of_equally_many_numbers_take_one_draw():
    options, (shape, _) = networks.SMALL["song_unet"]
    network = Network(NETWORKS["song_unet"](**options), shape)
    drawn = [np.prod(each.shape) for each in network.parameters().values() if len(each.shape) > 1]
    text = str(jax.make_jaxpr(network.init)(jax.random.key(0)))
    assert text.count("random_bits") <= len(set(drawn)) < len(drawn) / 2
