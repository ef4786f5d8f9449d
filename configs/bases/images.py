"""Image sets from TensorFlow Datasets, as 256 levels in [−1, 1] or [0, 1], and what stands in for latents.

FFHQ and AFHQv2 are none of its own: they are to be made under these names, or `data.source` set to another, such as
folder:PATH of one's own copy; see docs/data.md.
"""

from ml_collections import ConfigDict

# What each is called there, and its parts for training and testing.
SETS = {
    "cifar10": ("cifar10", "train", "test"),
    "svhn": ("svhn_cropped", "train", "test"),
    "celeba": ("celeb_a", "train", "validation"),
    "celebahq": ("celeb_a_hq/{size}", "train", "train"),
    "ffhq": ("ffhq/{size}", "train", "train"),
    "afhqv2": ("afhqv2/{size}", "train", "train"),
    "imagenet": ("imagenet2012", "train", "validation"),
    "lsun_bedroom": ("lsun/bedroom", "train", "validation"),
    "lsun_church": ("lsun/church_outdoor", "train", "validation"),
}


def apply(config: ConfigDict, name: str, *, size: int, centered: bool = True, classes: int = 0) -> None:
    """centered: data in [−1, 1] instead of [0, 1]. classes: of its labels, where they are used."""
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
            "classes": classes,
        }
    )
    config.evaluation = ConfigDict({"metrics": ("frechet",)})


def latents(config: ConfigDict, *, size: int) -> None:
    """Synthetic images in 1,000 classes, of the shape of Stable Diffusion's latents. size: of their sides."""
    config.data = ConfigDict({"source": "synthetic", "size": size, "channels": 4, "classes": 1000})
    config.evaluation = ConfigDict({"metrics": ("frechet",)})
