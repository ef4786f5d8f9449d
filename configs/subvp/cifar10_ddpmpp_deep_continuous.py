"""DDPM++, deep on CIFAR-10: sub-VP.

Command:   python main.py --config=configs/subvp/cifar10_ddpmpp_deep_continuous.py
               --workdir=runs/cifar10_ddpmpp_deep_continuous
Cost:      950,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  FID 2.41, Inception score 9.57; by the ODE 2.92; 2.99 bits/dim (score_sde's own table).
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=True)
    score_sde.model(config, "ddpmpp", blocks_per_resolution=8)
    score_sde.vp(config, name="subvp")
    score_sde.training(config, iterations=950000, batch_size=128, ema_rate=0.9999)
    score_sde.sampling(config, "euler_maruyama", "none", snr=0.16, moves=1, steps=1000)
    return config
