"""NCSN++ on CelebA at 64x64: NCSN's chain of 1000 levels from sigma = 90.

Command:   python main.py --config=configs/ve/celeba_ncsnpp.py --workdir=runs/celeba_ncsnpp
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "celeba", size=64, centered=False)
    score_sde.model(config, "ncsnpp", scale_by_sigma=True)
    score_sde.ve(config, sigma_max=90.0, levels=1000, continuous=False)
    score_sde.training(config, iterations=1300000, batch_size=128, ema_rate=0.999)
    score_sde.sampling(config, "reverse_diffusion", "langevin", snr=0.17, moves=1, steps=1000)
    return config
