r"""A function of t that a config can hold: arithmetic written as text, such as "-2 * log(tan(pi * t / 2))".

The text is parsed, never executed: numbers, `t`, `pi`, `+ - * / **`, and the functions in `FUNCTIONS`.
"""

import ast
import dataclasses
import functools
import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.errors import UserError, closest
from score_sde.sde.base import Times

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sqrt": jnp.sqrt,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "asinh": jnp.arcsinh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}


def _power(base: Any, exponent: Any) -> Any:
    result = base**exponent
    if isinstance(result, complex):  # of two constants; of arrays it is NaN
        raise ValueError(f"{base} to the power {exponent} is not real")
    return result


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
LONGEST = 1000
DEEPEST = 100  # so that evaluating it inside of other programs stays far from Python's limit on recursion


@dataclasses.dataclass(frozen=True)
class Formula:
    """A function of t. text: see the module. Raises UserError where it is not arithmetic on t."""

    text: str

    def __post_init__(self) -> None:
        _parse(self.text)

    @classmethod
    def parse(cls, value: object) -> "Formula":
        """Raises UserError unless `value` is a formula's text."""
        if not isinstance(value, str):
            raise UserError(f"must be a formula in t such as '-2 * log(t / (1 - t))', not {value!r}")
        return cls(str(value))

    def __str__(self) -> str:
        return self.text

    def __call__(self, t: Times) -> Times:
        return _evaluate(_parse(self.text), t) + jnp.zeros_like(t)


@functools.cache
def _parse(text: str) -> ast.expr:
    try:
        if len(text) > LONGEST:
            raise UserError(f"a formula has at most {LONGEST} characters, not {len(text)}")
        body = ast.parse(text.strip(), mode="eval").body
        _check(body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{text!r} is no formula in t: {getattr(error, 'msg', error)}") from error
    return body


def _check(node: ast.AST, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise UserError(f"a formula is nested at most {DEEPEST} deep")
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            # An integer may have more digits than a float can hold, or than Python is willing to print.
            if abs(value) > sys.float_info.max:
                raise UserError("a number in a formula is too large to be finite")
        case ast.Name(id="t" | "pi"):
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, depth + 1)
            _check(right, depth + 1)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, depth + 1)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            if name not in FUNCTIONS:
                raise UserError(f"unknown function {name!r} in a formula ({closest(name, FUNCTIONS)})")
            _check(argument, depth + 1)
        case ast.Name(id=name):
            raise UserError(f"unknown name {name!r} in a formula; it may use t, pi and {', '.join(FUNCTIONS)}")
        case _:
            raise UserError(f"{ast.unparse(node)!r} cannot stand in a formula, which is arithmetic on t")


def _evaluate(node: ast.expr, t: Times) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id="t"):
            return t
        case ast.Name():
            return math.pi
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, t), _evaluate(right, t))
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_evaluate(operand, t))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return FUNCTIONS[name](_evaluate(argument, t))
    raise AssertionError(ast.dump(node))
