"""NCSN++ on CelebA-HQ at 256x256: VE to sigma = 348.

Command:   python main.py --config=configs/ve/celebahq_256_ncsnpp_continuous.py
               --workdir=runs/celebahq_256_ncsnpp_continuous
Cost:      2,400,000 steps of 64 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "celebahq", size=256, centered=False)
    score_sde.model(config, "ncsnpp_large", scale_by_sigma=True)
    score_sde.ve(config, sigma_max=348.0, levels=2000)
    score_sde.training(config, iterations=2400000, batch_size=64, ema_rate=0.999)
    score_sde.sampling(config, "reverse_diffusion", "langevin", snr=0.075, moves=1, steps=2000)
    return config
