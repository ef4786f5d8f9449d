"""Fashion-MNIST: 70,000 photographs of clothes, 28×28 grey pixels of 256 levels, 10 classes.

Read from the four IDX files of the original, as Debian's package dataset-fashion-mnist has them;
`scripts/get_fashion_mnist` fetches that package and puts them where they are found here.

Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017.
"""

import dataclasses
import os
from pathlib import Path

from score_sde.data.idx import read_part
from score_sde.data.source import Records
from score_sde.errors import Checks, UserError

SIDE = 28
CLASSES = 10
FILES = {
    part: (f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz")
    for part, name in (("train", "train"), ("test", "t10k"))
}
INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # by Debian's package


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMNIST:
    """directory: where the four files are; "" for where they are found, in the user's cache folder or installed. low,
    high: what the 256 levels are scaled to."""

    ARGUMENT = "directory"

    directory: str = ""
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        with Checks() as check:
            check.that(self.low < self.high, f"low must lie below high, not {self.low} and {self.high}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (SIDE, SIDE, 1)

    @property
    def levels(self) -> int:
        return 256

    @property
    def classes(self) -> int:
        return CLASSES

    @property
    def range(self) -> tuple[float, float]:
        return (self.low, self.high)

    def split(self, name: str) -> Records:
        """ "train" or "test", with fields `image` and `label`. Raises UserError where a file is missing or damaged."""
        folders = [Path(self.directory)] if self.directory else [fetched(), INSTALLED]
        folder = next((each for each in folders if each.is_dir()), folders[0])
        images, labels = (folder / file for file in FILES[name])
        for path in (images, labels):
            if not path.is_file():
                raise UserError(
                    f"data: there is no {path}; run: scripts/get_fashion_mnist, or apt-get install "
                    "dataset-fashion-mnist, or set data.directory to the folder of its four files"
                )
        return read_part(images, labels, (SIDE, SIDE), CLASSES)


def fetched() -> Path:
    """Where `scripts/get_fashion_mnist` puts the files: `score_sde/fashion_mnist` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "score_sde" / "fashion_mnist"
