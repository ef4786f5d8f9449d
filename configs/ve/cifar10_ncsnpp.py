"""NCSN++ on CIFAR-10: NCSN's chain of 1000 levels from sigma = 50.

Command:   python main.py --config=configs/ve/cifar10_ncsnpp.py --workdir=runs/cifar10_ncsnpp
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  FID 2.45, Inception score 9.73 (score_sde's own table).
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=False)
    score_sde.model(config, "ncsnpp", scale_by_sigma=True)
    score_sde.ve(config, sigma_max=50.0, levels=1000, continuous=False)
    score_sde.training(config, iterations=1300000, batch_size=128, ema_rate=0.999)
    score_sde.sampling(config, "reverse_diffusion", "langevin", snr=0.16, moves=1, steps=1000)
    return config
