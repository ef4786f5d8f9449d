"""scikit-learn's handwritten digits: 1,797 real 8×8 images of 17 grey levels, 10 classes.

From the UCI "Optical Recognition of Handwritten Digits" data set (Alpaydin & Kaynak 1998); it ships inside
scikit-learn. The split is fixed: a seeded permutation by NumPy's frozen legacy generator, 1,297 train and 500 test.
"""

import dataclasses

import numpy as np

from score_sde.data.source import InMemory, Records

TEST_SIZE = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """The digits. Nothing to set."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (8, 8, 1)

    @property
    def levels(self) -> int:
        return 17

    @property
    def classes(self) -> int:
        return 10

    @property
    def range(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def split(self, name: str) -> Records:
        """ "train" or "test", with fields `image` and `label`."""
        from sklearn.datasets import load_digits  # slow to import, and needed by this source alone

        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.images))
        index = {"train": order[TEST_SIZE:], "test": order[:TEST_SIZE]}[name]
        images = digits.images[index, :, :, None].astype(np.uint8)
        return InMemory({"image": images, "label": digits.target[index].astype(np.int32)})
