"""The tensors of a published checkpoint on their way into a network's parameters.

An importer names where each tensor goes; what is left over, missing or of another shape is found here, for all of
them at once, so that no weight is ever silently dropped or left at random.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.models.functional import Functional
from score_sde.typing import Params

MOST_LISTED = 12
Part = dict[str, Any]  # a piece of the nested dict of parameters


class Tensors:
    """Named arrays, each to be taken once. PyTorch's layouts are turned into this project's on the way.

    A name that is missing is noted and gives an empty array, so that one error can name all; so is one of another type
    than floating-point numbers.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = dict(arrays)
        self.missing: list[str] = []
        self.other: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str) -> np.ndarray:
        """The array, as float32."""
        if name not in self._arrays:
            self.missing.append(name)
            return np.zeros(0, np.float32)
        array = self._arrays.pop(name)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            self.other.append(f"{name} of {array.dtype}")
        return array.real.astype(np.float32, copy=False)

    def ignore(self, names: Iterable[str]) -> None:
        """Drops what holds nothing learnt: buffers that follow from the settings."""
        for name in names:
            self._arrays.pop(name, None)

    def left(self) -> list[str]:
        """Names that were not taken."""
        return sorted(self._arrays)

    def conv(self, name: str, *, bias: bool = True) -> Part:
        """`name.weight` (out, in, *space) as a kernel (*space, in, out), and `name.bias`."""
        weight = self.take(f"{name}.weight")
        return self._with_bias(
            {"kernel": np.moveaxis(weight, (0, 1), (-1, -2)) if weight.ndim > 1 else weight}, name, bias
        )

    def dense(self, name: str, *, bias: bool = True) -> Part:
        """`name.weight` (out, in), also of a 1×1 convolution, as a kernel (in, out), and `name.bias`."""
        weight = self.take(f"{name}.weight")
        matrix = weight.ndim > 1 and set(weight.shape[2:]) <= {1}  # else of another network, which its shape will tell
        return self._with_bias({"kernel": weight.reshape(weight.shape[:2]).T if matrix else weight}, name, bias)

    def folded(self, conv: str, norm: str, epsilon: float) -> Part:
        """A convolution `conv` without bias and the batch normalisation `norm` after it, as one with a bias.

        γ (W * x − μ)/√(v + ε) + β: the kernel is γ/√(v + ε) W and the bias β − γ/√(v + ε) μ. In float64, rounded once.
        """
        kernel = self.conv(conv, bias=False)["kernel"].astype(np.float64)
        parts = [self.take(f"{norm}.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
        scale, bias, mean, variance = (part.astype(np.float64) for part in parts)
        self.ignore([f"{norm}.num_batches_tracked"])
        factor = scale / np.sqrt(variance + epsilon)
        return {"kernel": (kernel * factor).astype(np.float32), "bias": (bias - factor * mean).astype(np.float32)}

    def norm(self, name: str) -> Part:
        """`name.weight` and `name.bias` of a normalisation."""
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def table(self, name: str) -> Part:
        """`name.weight` of an embedding."""
        return {"embedding": self.take(f"{name}.weight")}

    def _with_bias(self, part: Part, name: str, bias: bool) -> Part:
        return part | ({"bias": self.take(f"{name}.bias")} if bias else {})


def listed(names: Iterable[object]) -> str:
    """The first of many names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - MOST_LISTED} more" if len(every) > MOST_LISTED else ""
    return ", ".join(every[:MOST_LISTED]) + more


def checked(network: Functional, params: Params, tensors: Tensors, where: str) -> Params:
    """`params`, once every tensor was used and every parameter is there in its shape, of finite numbers.

    Raises UserError otherwise.
    """
    known, given = network.parameters(), dict(flat(params))
    name = lambda path: ".".join(map(str, path))
    problems = []
    if tensors.missing:
        problems.append(f"not in the file: {listed(tensors.missing)}")
    if tensors.left():
        problems.append(f"left over in the file: {listed(tensors.left())}")
    absent = [name(path) for path in known if path not in given]
    if absent:
        problems.append(f"not filled: {listed(absent)}")
    unknown = [name(path) for path in given if path not in known]
    if unknown:
        problems.append(f"no such parameter: {listed(unknown)}")
    other = [
        f"{name(path)} is {given[path].shape}, must be {each.shape}"
        for path, each in known.items()
        if path in given and given[path].shape != each.shape and (given[path].size or not tensors.missing)
    ]
    if other:
        problems.append(f"of another shape: {listed(other)}")
    if tensors.other:
        problems.append(f"no floating-point numbers: {listed(tensors.other)}")
    infinite = [name(path) for path, value in given.items() if not np.isfinite(value).all()]
    if infinite:
        problems.append(f"not finite: {listed(infinite)}")
    if problems:
        raise UserError(f"{where} does not fit the config's network: " + "; ".join(problems))
    return params


def flat(node: Any, path: tuple[str | int, ...] = ()) -> Iterable[tuple[tuple[str | int, ...], np.ndarray]]:
    """The leaves of nested dicts, each with its path."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, value in node.items():
        yield from flat(value, (*path, key))
