"""NCSN++, deep on CIFAR-10: VE to sigma = 50.

Command:   python main.py --config=configs/ve/cifar10_ncsnpp_deep_continuous.py
               --workdir=runs/cifar10_ncsnpp_deep_continuous
Cost:      950,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  FID 2.20, Inception score 9.89 (score_sde's own table).
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=False)
    score_sde.model(config, "ncsnpp", blocks_per_resolution=8, embedding="log_fourier", scale_by_sigma=True)
    score_sde.ve(config, sigma_max=50.0, levels=1000)
    score_sde.training(config, iterations=950000, batch_size=128, ema_rate=0.999)
    score_sde.sampling(config, "reverse_diffusion", "langevin", snr=0.16, moves=1, steps=1000)
    return config
