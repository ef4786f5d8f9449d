"""scikit-learn's digits: 1,297 training and 500 test images of 8×8 pixels, in 17 grey levels."""

from ml_collections import ConfigDict


def apply(config: ConfigDict) -> None:
    """Sets the data and what depends on it alone."""
    config.data = ConfigDict({"source": "digits"})
    config.evaluation = ConfigDict({"metrics": ("frechet", "recognition")})
