"""The slices of TPUs that there are, as the planner and the launchers name them: `v5e:16x16`.

A grid of two sides on v5e and v6e, of three on v4 and v5p; of the grids of one size, the one that Cloud TPU's
accelerator type of that size stands for (cloud.google.com/tpu/docs/v4 and so on). Imports no jax, for the launchers.
"""

from score_sde.errors import UserError, closest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16", "8x16x16")

SLICES: dict[str, tuple[str, ...]] = {"v4": _SOLID, "v5e": _FLAT, "v5p": (*_SOLID, "16x16x16"), "v6e": _FLAT}


def check(text: str, where: str) -> tuple[str, str]:
    """The kind and the grid of `v5e:16x16`. where: what is named so. Raises UserError with what is valid."""
    kind, _, grid = text.partition(":")
    if kind not in SLICES:
        raise UserError(f"{where}={text}: unknown TPU {kind!r} ({closest(kind, SLICES)}), as in v5e:16x16")
    if grid not in SLICES[kind]:
        raise UserError(f"{where}={text}: {kind} has no slice {grid!r}; valid: {', '.join(SLICES[kind])}")
    return kind, grid
