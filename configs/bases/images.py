"""The image sets of score_sde's experiments, from TensorFlow Datasets, as 256 levels in [−1, 1] or [0, 1]."""

from ml_collections import ConfigDict

# What each is called there, and its parts for training and testing.
SETS = {
    "cifar10": ("cifar10", "train", "test"),
    "celeba": ("celeb_a", "train", "validation"),
    "celebahq": ("celeb_a_hq/{size}", "train", "train"),
    "ffhq": ("ffhq/{size}", "train", "train"),
    "lsun_bedroom": ("lsun/bedroom", "train", "validation"),
    "lsun_church": ("lsun/church_outdoor", "train", "validation"),
}


def apply(config: ConfigDict, name: str, *, size: int, centered: bool) -> None:
    """centered: data in [−1, 1] instead of [0, 1]."""
    dataset, train, test = SETS[name]
    config.data = ConfigDict(
        {
            "source": "tfds",
            "name": dataset.format(size=size),
            "size": size,
            "train": train,
            "test": test,
            "low": -1.0 if centered else 0.0,
            "high": 1.0,
        }
    )
    config.evaluation = ConfigDict({"metrics": ("frechet_pixels",)})
