"""`sampling.label`: which label each sample is given."""

import dataclasses
import re

import jax.numpy as jnp
from jaxtyping import Array, Int

from score_sde.errors import Checks, UserError
from score_sde.training.step import NO_LABEL


@dataclasses.dataclass(frozen=True)
class Label:
    """text: the number of a label; "all", by which sample i has label i modulo their number; or "none"."""

    text: str

    @classmethod
    def parse(cls, value: object) -> "Label":
        """Raises UserError unless `value` is one of these; a number may be an integer, too."""
        text = str(value)
        if text not in ("none", "all") and re.fullmatch("[0-9]{1,9}", text) is None:
            raise UserError(f"must be the number of a label, 'all' or 'none', not {text!r}")
        return cls(text)

    def __str__(self) -> str:
        return self.text

    def check(self, classes: int) -> None:
        """Raises UserError where a network with so many classes, 0 for none, cannot be given it."""
        with Checks() as check:
            check.that(classes > 0 or self.text == "none", f"label={self.text} needs a network with classes")
            if classes and self.text.isdecimal():
                check.that(int(self.text) < classes, f"label must lie in [0, {classes - 1}], not {self.text}")

    def of_samples(self, index: Int[Array, "batch"], classes: int) -> Int[Array, "batch"]:
        """The label of each sample, by its index; `NO_LABEL` for "none"."""
        if self.text == "all":
            return index % classes
        return jnp.full_like(index, NO_LABEL if self.text == "none" else int(self.text))


UNLABELLED = Label("none")
