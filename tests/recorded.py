"""Outputs of other implementations in `fixtures/`, recorded with weights that are drawn and not stored.

A case of a file holds its arrays, and the shapes of its weights by name, from which `weights` draws them again.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def weights(shapes):
    """Weights by name, about as large as trained ones and none at its initial value; shapes: (out, in, *space)."""
    return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name, shape):
    draw = np.random.RandomState(zlib.crc32(name.encode()))  # its stream is the same for ever, a Generator's is not
    inputs = math.prod(shape[1:]) if len(shape) > 1 else 25
    is_scale = len(shape) == 1 and name.endswith(("weight", "scale"))
    value = draw.standard_normal(shape) / math.sqrt(inputs) + is_scale
    if name.endswith("running_var"):  # positive, and about a half, so that as much comes out of a relu as goes in
        value = 0.5 * np.exp(value)
    return value.astype(np.float32)


def write(file, cases):
    """cases: name to (shapes of the weights, arrays by name)."""
    flat = {f"{case}/{name}": array for case, (_, arrays) in cases.items() for name, array in arrays.items()}
    shapes = {case: each for case, (each, _) in cases.items()}
    np.savez_compressed(FIXTURES / file, shapes=np.asarray(json.dumps(shapes)), **flat)


def read(file, case):
    """(weights, arrays) of a case."""
    with np.load(FIXTURES / file) as stored:
        shapes = json.loads(str(stored["shapes"]))[case]
        arrays = {name.partition("/")[2]: stored[name] for name in stored.files if name.startswith(f"{case}/")}
    return weights(shapes), arrays


def coarse_images(count, side):
    """Images that need not be stored: patterns of 13×13 colours, uint8 (count, side, side, 3)."""
    patches = np.random.RandomState(0).randint(256, size=(count, 13, 13, 3))
    place = np.arange(side) * 13 // side
    return patches[:, place][:, :, place].astype(np.uint8)
