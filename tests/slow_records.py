"""Records for tests of workers, which import this and no jax."""

import dataclasses
import os
import sys
import time
from typing import Any

import numpy as np

from score_sde.errors import RunFailed


@dataclasses.dataclass(frozen=True)
class Slow:
    """Record n is an image of n, which takes `seconds`. damaged: one that cannot be read; foolish: one with a bug."""

    count: int = 53
    seconds: float = 0.0
    damaged: int = -1
    foolish: int = -1
    fields: tuple[str, ...] = ("image", "label", "process", "jax")

    def __len__(self) -> int:
        return self.count

    def gather(self, index, fields=None) -> dict[str, Any]:
        time.sleep(self.seconds)
        if self.damaged in index:
            raise RunFailed(f"data: {self.damaged}: file {self.damaged}.png is cut short")
        if self.foolish in index:
            raise ZeroDivisionError("a bug")
        values = {
            "image": np.asarray(index) % 251,
            "label": 1000 + np.asarray(index),
            "process": np.full(len(index), os.getpid()),
            "jax": np.full(len(index), "jax" in sys.modules or "grain" in sys.modules),
        }
        return {name: values[name] for name in fields or self.fields}


@dataclasses.dataclass(frozen=True)
class Deadly(Slow):
    """Reading one ends the process, as the kernel does where memory runs out."""

    def gather(self, index, fields=None) -> dict[str, Any]:
        os.kill(os.getpid(), 9)
        raise AssertionError
