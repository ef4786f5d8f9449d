"""Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 grey pixels in 256 levels, from Debian's package."""

from ml_collections import ConfigDict


def apply(config: ConfigDict) -> None:
    """Sets the data and what depends on it alone."""
    config.data = ConfigDict({"source": "fashion_mnist"})
    config.evaluation = ConfigDict(
        {
            "metrics": ("frechet", "kernel", "precision", "recall", "memorisation"),
            "extractors": ("fashion_cnn", "pixels"),
        }
    )
