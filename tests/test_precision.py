"""Products in a narrow precision whose kernel's gradient is summed in a wide one, against jax's own in the wide one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.models import NETWORKS, Network
from score_sde.models.precision import Convolution, Matrix, convolve, matmul, offset, product

BFLOAT16 = 2.0**-8  # of a value, by which rounding moves it at most
CASES = {
    "matrix": (Matrix(), (6, 5), (5, 4)),
    "matrix of places": (Matrix(), (6, 3, 2, 5), (5, 4)),
    "convolution": (Convolution((1, 1), ((1, 1), (1, 1)), (1, 1)), (3, 6, 7, 5), (3, 3, 5, 4)),
    "of one axis": (Convolution((2,), ((0, 1),), (1,)), (3, 8, 5), (3, 5, 4)),
    "of three axes": (Convolution((1, 2, 1), ((1, 1),) * 3, (1, 1, 1)), (2, 4, 5, 6, 3), (3, 3, 3, 3, 2)),
    "strided": (Convolution((2, 2), ((1, 1), (0, 1)), (1, 1)), (3, 8, 7, 5), (3, 3, 5, 4)),
    "dilated": (Convolution((1, 1), ((2, 2), (4, 4)), (2, 4)), (3, 9, 9, 5), (3, 3, 5, 4)),
    "one-sided": (Convolution((1, 1), ((1, 0), (0, 1)), (1, 1)), (3, 6, 7, 5), (2, 2, 5, 4)),
    "that leaves a rest": (Convolution((3, 2), ((0, 0), (1, 0)), (1, 2)), (3, 9, 8, 2), (2, 3, 2, 4)),
}


def whole(key, shape):
    """Whole numbers, all of whose products and sums are exact in the wide precision, and they themselves in both."""
    return jax.random.randint(jax.random.key(key), shape, -128, 129).astype(jnp.float32)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_plain_operation(name):
    """Of whole numbers exactly: x̄ is rounded to bfloat16, w̄ is not."""
    form, x_shape, kernel_shape = CASES[name]
    x, kernel = whole(0, x_shape), whole(1, kernel_shape)
    out, plain = jax.vjp(form.out, x, kernel)
    mine, of_mine = jax.vjp(lambda x, kernel: product(form, x, kernel, jnp.bfloat16), x, kernel)
    np.testing.assert_array_equal(mine, out.astype(jnp.bfloat16))
    cotangent = whole(2, out.shape)
    x_bar, kernel_bar = plain(cotangent)
    found_x, found_kernel = of_mine(cotangent.astype(jnp.bfloat16))
    assert (found_x.dtype, found_kernel.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_array_equal(found_x, x_bar.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(found_kernel, kernel_bar)
    assert not np.array_equal(kernel_bar, kernel_bar.astype(jnp.bfloat16))  # rounding would have been seen


@pytest.mark.parametrize("name", ["matrix of places", "strided", "dilated"])
def test_derivatives_of_any_order(name):
    """Forwards, backwards, and of the gradients themselves, beside those in float32."""
    form, x_shape, kernel_shape = CASES[name]
    x, kernel, dx, dkernel = (whole(key, shape) / 128 for key, shape in enumerate((x_shape, kernel_shape) * 2))
    narrow = lambda x, kernel: product(form, x, kernel, jnp.bfloat16).astype(jnp.float32)

    def twice(multiply):
        """A number whose gradient has the derivatives of both gradients, by both operands."""
        loss = lambda x, kernel: jnp.mean(multiply(x, kernel) ** 2) / 4
        return lambda x, kernel: sum(jnp.sum(jnp.sin(each)) for each in jax.grad(loss, (0, 1))(x, kernel))

    for mine, plain in ((narrow, form.out), (jax.grad(twice(narrow), (0, 1)), jax.grad(twice(form.out), (0, 1)))):
        found = jax.jit(lambda mine=mine: jax.jvp(mine, (x, kernel), (dx, dkernel)))()
        right = jax.jit(lambda plain=plain: jax.jvp(plain, (x, kernel), (dx, dkernel)))()
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(one, other, atol=4 * BFLOAT16 * np.abs(other).max())


def test_no_gradient_is_rounded_before_it_is_summed():
    """Of every parameter of networks in bfloat16: what goes into its sum over samples comes out in float32."""
    networks = {
        "ncsnpp": {"channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "fir": True},
        "adm": {"channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "head_channels": 4},
        "edm2": {"channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "channels_per_head": 4},
        "dit": {"size": "S", "depth": 1, "width": 16, "heads": 2},
        "uvit": {"size": "small", "depth": 2, "width": 16, "heads": 2},
    }
    for name, settings in networks.items():
        network = Network(NETWORKS[name](dtype="bfloat16", classes=3, **settings), (8, 8, 1))
        params = jax.eval_shape(network.init, jax.random.key(0))
        x, noise, condition = jnp.zeros((4, 8, 8, 1)), jnp.zeros(4), {"label": jnp.zeros(4, int)}
        loss = lambda params, network=network, x=x, noise=noise, condition=condition: jnp.sum(
            network.apply(params, x, noise, condition, train=True, rng=jax.random.key(1))
        )
        program = jax.make_jaxpr(jax.grad(loss))(params)
        rounded = list(_narrowed(program.jaxpr))
        assert not rounded, (name, rounded)


def _narrowed(jaxpr):
    """Results of the program that are widened from bfloat16, by the operation that made them."""
    made = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    for variable in jaxpr.outvars:
        equation = made.get(variable)
        while equation is not None and equation.primitive.name in (
            "mul",
            "reshape",
            "transpose",
            "add_any",
            "squeeze",
            "copy_p",
        ):
            equation = next((made[each] for each in equation.invars if each in made), None)
        if equation is not None and equation.primitive.name == "convert_element_type":
            source = equation.invars[0]
            if source.aval.dtype == jnp.bfloat16:
                yield f"{variable.aval.str_short()} of {made[source].primitive.name if source in made else source}"


def test_float32_has_no_product_of_its_own():
    x, kernel = jnp.zeros((2, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
    program = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, jnp.float32))(x, kernel)
    assert [equation.primitive.name for equation in program.eqns] == ["conv_general_dilated"]


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
def test_paddings(strides, padding):
    """By name and by number as those of jax."""
    x, kernel = whole(0, (2, 7, 6, 3)), whole(1, (3, 2, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")
    right = jax.lax.conv_general_dilated(x, kernel, (strides, strides), padding, dimension_numbers=numbers)
    np.testing.assert_array_equal(convolve(x, kernel, jnp.float32, strides=strides, padding=padding), right)


def test_a_map_over_products():
    """`vmap` of the product and of its gradient, over either operand or both."""
    x, kernel = whole(0, (5, 6, 3)), whole(1, (5, 3, 4))
    loss = lambda x, kernel: jnp.sum(matmul(x, kernel, jnp.bfloat16).astype(jnp.float32))
    for axes in itertools.product((0, None), repeat=2):
        if axes == (None, None):
            continue
        own = [value if axis == 0 else value[0] for value, axis in zip((x, kernel), axes, strict=True)]
        found = jax.vmap(jax.grad(loss, (0, 1)), axes)(*own)
        each = [
            jax.grad(loss, (0, 1))(*(value[i] if axis == 0 else value for value, axis in zip(own, axes, strict=True)))
            for i in range(5)
        ]
        for one, other in zip(found, (jnp.stack(part) for part in zip(*each, strict=True)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_gradient_of_an_offset():
    """256 + 1 is 256 in bfloat16: a sum in it would stay there."""
    x = jnp.zeros((1000, 2), jnp.bfloat16)
    loss = lambda bias: jnp.sum(offset(x, bias).astype(jnp.float32))
    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros(2)), [1000.0, 1000.0])
