"""FLOPs against hand-counted and published ones; the time of a step against its closed form."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.distributed.chips import CHIPS, bandwidth
from score_sde.distributed.collectives import Collective
from score_sde.distributed.roofline import Roofline, flops, roofline
from score_sde.models import NETWORKS, Network
from score_sde.models.precision import convolve

A = jax.ShapeDtypeStruct((8, 16), jnp.float32)
B = jax.ShapeDtypeStruct((16, 32), jnp.float32)
PRODUCT = 2 * 8 * 16 * 32


def repeated(a, b):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ b @ b.T), None), a, None, length=5)[0]


def branches(a, b):
    return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a @ b) @ (b.T @ b))


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda a, b: a @ b, PRODUCT),
        (lambda a, b: jnp.einsum("ij,jk->k", a, b), 2 * 16 * 32),
        (lambda a, b: jax.vmap(lambda row: row @ b)(a), PRODUCT),
        (lambda a, b: jax.jit(lambda a: a @ b)(a), PRODUCT),
        (repeated, 5 * 2 * PRODUCT),
        (branches, PRODUCT + 2 * 32 * 16 * 32 + 2 * 8 * 32 * 32),
        (jax.grad(lambda a, b: jnp.sum(jnp.tanh(a @ b)), (0, 1)), 3 * PRODUCT),
        (lambda a, b: jax.grad(jax.checkpoint(lambda b: jnp.sum(jnp.tanh(a @ b) ** 2)))(b), 3 * PRODUCT),
        (lambda a, b: a + 1, 0),
    ],
)
def test_matrix_products(function, count):
    assert flops(function, A, B) == count


@pytest.mark.parametrize(
    ("options", "kernel", "out"),
    [
        ({"padding": "SAME"}, (3, 3, 6, 10), (8, 8)),
        ({"padding": "VALID", "window_strides": (2, 2)}, (3, 3, 6, 10), (3, 3)),
        ({"padding": "SAME", "feature_group_count": 6}, (3, 3, 1, 12), (8, 8)),
        ({"padding": "VALID", "rhs_dilation": (2, 2)}, (3, 3, 6, 10), (4, 4)),
    ],
)
def test_convolutions(options, kernel, out):
    x, k = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, **options)
    per_output = kernel[0] * kernel[1] * kernel[2]
    assert flops(convolve, x, k) == 2 * 2 * out[0] * out[1] * kernel[3] * per_output


# Multiply-adds of one forward pass in 10⁹: Peebles & Xie 2023, table 4 (their "Gflops").
DIT = {"S": 6.06, "B": 23.01, "L": 80.71, "XL": 118.64}


@pytest.mark.parametrize("size", DIT)
def test_published_counts_of_dit(size):
    network = Network(NETWORKS["dit"](size=size, patch=2, learned_variance=True, classes=1000), (32, 32, 4))
    params = jax.eval_shape(network.init, jax.random.key(0))
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    apply = lambda p, x, t, label: network.apply(p, x, t, {"label": label}, train=False, rng=None)
    assert flops(apply, params, of(1, 32, 32, 4), of(1), labels) / 2e9 == pytest.approx(DIT[size], rel=2e-3)


def grid(*sides, slices=1):
    """A mesh (slice, data, fsdp, tensor) of chips in a grid, data along the first side, fsdp along the second."""
    places = np.array(list(np.ndindex(*sides)))
    devices = np.empty((slices, *sides, 1), object)
    for number in range(slices):
        for place in places:
            coords = [*map(int, place), *[0] * (3 - len(sides))]
            devices[(number, *place, 0)] = SimpleNamespace(coords=coords, slice_index=number)
    return SimpleNamespace(devices=devices, axis_names=("slice", "data", "fsdp", "tensor"))


V5E = CHIPS["TPU v5 lite"]


def test_links_of_a_grid():
    assert bandwidth(V5E, grid(4, 4), ("data",)) == V5E.link  # the ends of a side of 4 are not linked
    assert bandwidth(V5E, grid(16, 16), ("fsdp",)) == 2 * V5E.link
    assert bandwidth(V5E, grid(16, 4), ("data", "fsdp")) == 3 * V5E.link
    assert bandwidth(V5E, grid(4, 4, slices=2), ("slice",)) == V5E.network
    assert bandwidth(V5E, grid(4, 4, slices=2), ("slice", "data")) == V5E.network


def test_time_of_a_step():
    sends = lambda overlapped: Collective("all-reduce", 1000, 4, ("fsdp",), 1, overlapped, "")
    found = roofline(V5E, grid(4, 4), 197e9, 8.19e6, [sends(True), sends(False), sends(False)])
    one = 1500 / V5E.link
    np.testing.assert_allclose(found, (1e-3, 1e-5, one, 2 * one))
    assert found.step == found.compute + found.exposed
    assert found.bound == "compute"
    assert Roofline(1.0, 2.0, 3.0, 0.5).step == 3.5
    assert Roofline(1.0, 2.0, 1.5, 1.0).bound == "communication"


@pytest.mark.parametrize("strides", [1, 2])
def test_products_in_a_narrow_precision_count_as_others(strides):
    """Forward, and both gradients."""
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

    def of(dtype):
        loss = lambda x, kernel: jnp.sum(convolve(x, kernel, dtype, strides=strides).astype(jnp.float32))
        return flops(loss, x, kernel), flops(jax.grad(loss, (0, 1)), x, kernel)

    narrow, wide = of(jnp.bfloat16), of(jnp.float32)
    assert narrow == wide
    assert narrow[0] > 0
