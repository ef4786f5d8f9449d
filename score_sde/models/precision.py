"""Products of activations in a narrow precision with parameters in a wide one, whose gradients are sums in that.

With activations in bfloat16 and parameters in float32, a layer that casts its kernel first has the kernel's gradient
in bfloat16: the sum over the samples of a device is rounded to it, and sums over devices are taken in it. Here the cast
is a part of the product. A product is bilinear,

    y = x · w,        x̄ = ȳ · wᵀ,        w̄ = xᵀ · ȳ,

and each of the three is bilinear in its operands, whose gradients are the other two. So one primitive holds all of
them, to any order, forwards and backwards: operands are rounded to the narrow precision, as is what it gives, but w̄,
which is given, and therefore summed over devices, in the precision of w. (Micikevicius et al. 2018 keep the weights in
the wide precision, and round their gradients to the narrow one.)

A `vmap` makes of a product its plain operations, so that a gradient taken outside of it is rounded.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Dtype = Any
Shape = tuple[int, ...]


class Form(Protocol):
    """A bilinear map (x, kernel) -> out, and both of its transposes. Hashable."""

    def out(self, x: Array, kernel: Array) -> Array:
        """The map itself."""

    def x(self, kernel: Array, out: Array, shape: Shape) -> Array:
        """Of x, of `shape`: what of it meets `out`."""

    def kernel(self, x: Array, out: Array, shape: Shape, dtype: Dtype) -> Array:
        """Of the kernel, of `shape`: what of it meets `out`, accumulated and given in `dtype`."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """x @ kernel of shapes (*places, in) and (in, out)."""

    def out(self, x: Array, kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))

    def x(self, kernel: Array, out: Array, shape: Shape) -> Array:
        return jax.lax.dot_general(out, kernel, (((out.ndim - 1,), (1,)), ((), ())))

    def kernel(self, x: Array, out: Array, shape: Shape, dtype: Dtype) -> Array:
        places = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, out, ((places, places), ((), ())), preferred_element_type=dtype)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of (batch, *space, in) with (*window, in, out). padding: before and after, along each axis."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(
        x: Array,
        kernel: Array,
        *,
        strides: int | tuple[int, ...] = 1,
        padding: str | tuple[tuple[int, int], ...] = "SAME",
        dilation: int | tuple[int, ...] = 1,
    ) -> "Convolution":
        """Of arrays of these shapes."""
        space = x.ndim - 2
        strides, dilation = (value if isinstance(value, tuple) else (value,) * space for value in (strides, dilation))
        if isinstance(padding, str):
            window = [(side - 1) * apart + 1 for side, apart in zip(kernel.shape, dilation, strict=False)]
            padding = tuple(jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding))
        return Convolution(strides, padding, dilation)

    def out(self, x: Array, kernel: Array) -> Array:
        space = self._space
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.dilation,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        )

    def x(self, kernel: Array, out: Array, shape: Shape) -> Array:
        transpose = jax.linear_transpose(lambda x: self.out(x, kernel), jax.ShapeDtypeStruct(shape, out.dtype))
        return transpose(out)[0]

    def kernel(self, x: Array, out: Array, shape: Shape, dtype: Dtype) -> Array:
        """w̄_k = Σ_o x_{s o + d k − before} ȳ_o: a convolution with stride and dilation in each other's place."""
        space = self._space
        padding = [
            (before, (out_side - 1) * stride + (window - 1) * apart + 1 - side - before)
            for (before, _), side, out_side, window, stride, apart in zip(
                self.padding, x.shape[1:-1], out.shape[1:-1], shape, self.strides, self.dilation, strict=False
            )
        ]
        return jax.lax.conv_general_dilated(
            x,
            out,
            self.dilation,
            padding,
            rhs_dilation=self.strides,
            dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
            preferred_element_type=dtype,
        )

    @property
    def _space(self) -> str:
        return "WHD"[: len(self.strides)]


@dataclasses.dataclass(frozen=True)
class Product:
    """What the primitive computes of two of x, kernel and out, in this order: the third, named `find`, of `shape`.

    narrow: the precision of the computation. wide: of a kernel that is found.
    """

    OPERANDS: ClassVar[dict[str, tuple[str, str]]] = {
        "out": ("x", "kernel"),
        "x": ("kernel", "out"),
        "kernel": ("x", "out"),
    }

    form: Form
    find: str
    shape: Shape
    narrow: Dtype
    wide: Dtype

    def __call__(self, first: Array, second: Array) -> Array:
        first, second = first.astype(self.narrow), second.astype(self.narrow)
        if self.find == "out":
            return self.form.out(first, second)
        if self.find == "x":
            return self.form.x(first, second, self.shape)
        return self.form.kernel(first, second, self.shape, self.wide)

    @property
    def dtype(self) -> Dtype:
        """Of what is found."""
        return self.wide if self.find == "kernel" else self.narrow

    def transposed(self, number: int, cotangent: Array, operands: tuple[Any, Any]) -> Array:
        """The gradient with respect to operand `number`, from that of what is found and the other operand."""
        names = self.OPERANDS[self.find]
        known = {self.find: cotangent, names[1 - number]: operands[1 - number]}
        other = dataclasses.replace(self, find=names[number], shape=operands[number].aval.shape)
        return _product.bind(*(known[name] for name in self.OPERANDS[other.find]), compute=other)


_product = Primitive("product")
_product.def_impl(lambda first, second, *, compute: compute(first, second))
_product.def_abstract_eval(
    lambda first, second, *, compute: first.update(shape=compute.shape, dtype=jnp.dtype(compute.dtype), weak_type=False)
)
ad.defbilinear(
    _product,
    lambda cotangent, *operands, compute: compute.transposed(0, cotangent, operands),
    lambda cotangent, *operands, compute: compute.transposed(1, cotangent, operands),
)
batching.primitive_batchers[_product] = lambda operands, axes, *, compute: (jax.vmap(compute, axes)(*operands), 0)
mlir.register_lowering(
    _product,
    mlir.lower_fun(lambda first, second, *, compute: compute(first, second), multiple_results=False),
)


def product(form: Form, x: Array, kernel: Array, dtype: Dtype) -> Array:
    """`form` of x and kernel in `dtype`. Where the kernel is in a wider one, so is its gradient."""
    x = x.astype(dtype)
    if jnp.finfo(dtype).bits >= jnp.finfo(kernel.dtype).bits:
        return form.out(x, kernel.astype(dtype))
    shape = jax.eval_shape(form.out, x, jax.ShapeDtypeStruct(kernel.shape, dtype)).shape
    return _product.bind(x, kernel, compute=Product(form, "out", shape, dtype, kernel.dtype))


def matmul(x: Float[Array, "*places in"], kernel: Float[Array, "in out"], dtype: Dtype) -> Float[Array, "*places out"]:
    """x @ kernel; see `product`."""
    return product(Matrix(), x, kernel, dtype)


def convolve(
    x: Float[Array, "batch *space in"], kernel: Float[Array, "*window in out"], dtype: Dtype, **options: Any
) -> Float[Array, "batch *places out"]:
    """The convolution; see `product`. options: those of `Convolution.of`."""
    return product(Convolution.of(x, kernel, **options), x, kernel, dtype)


def offset(x: Float[Array, "*places channels"], bias: Float[Array, "channels"]) -> Float[Array, "*places channels"]:
    """x + bias in the precision of x, with the gradient of the bias summed in the precision of the bias."""
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)
