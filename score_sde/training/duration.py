"""Durations that carry their unit: "3000 steps", "20 epochs", "200000 images"."""

import dataclasses
import math
import re

from score_sde.errors import UserError

UNITS = ("steps", "epochs", "images")
_PATTERN = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*([a-z]+)\s*")


@dataclasses.dataclass(frozen=True)
class Duration:
    """amount: at least 0. unit: one of `UNITS`."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Raises UserError unless `text` is a number followed by a unit."""
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None or match[2] not in UNITS or not math.isfinite(float(match[1])):
            raise UserError(
                f"a duration is a number and a unit ({', '.join(UNITS)}) such as '3000 steps', not {text!r}"
            )
        return cls(float(match[1]), match[2])

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"

    def steps(self, batch_size: int, records: int) -> int:
        """The number of training steps, rounded up."""
        return math.ceil(self.exact_steps(batch_size, records))

    def exact_steps(self, batch_size: int, records: int) -> float:
        """The same, not rounded."""
        return {"steps": batch_size, "epochs": records, "images": 1}[self.unit] * self.amount / batch_size
