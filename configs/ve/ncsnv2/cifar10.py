"""NCSNv2 on CIFAR-10: NCSN's chain of 232 levels from sigma = 50.

Command:   python main.py --config=configs/ve/ncsnv2/cifar10.py --workdir=runs/cifar10
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song & Ermon, "Improved Techniques for Training Score-Based Generative Models", NeurIPS 2020.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=False)
    score_sde.model(config, "ncsnv2")
    score_sde.ve(config, sigma_max=50.0, levels=232, continuous=False)
    score_sde.training(
        config, iterations=1300000, batch_size=128, ema_rate=0.999, learning_rate=0.0001, warmup=0, gradient_clip=0.0
    )
    score_sde.sampling(config, "none", "annealed_langevin", snr=0.176, moves=5, steps=232)
    return config
