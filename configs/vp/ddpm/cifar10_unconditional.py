"""DDPM on CIFAR-10: DDPM's chain of 1000 steps, not told the noise level.

Command:   python main.py --config=configs/vp/ddpm/cifar10_unconditional.py --workdir=runs/cifar10_unconditional
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=True)
    score_sde.model(config, "ddpm", noise_conditional=False)
    score_sde.vp(config, continuous=False)
    score_sde.training(config, iterations=1300000, batch_size=128, ema_rate=0.9999)
    score_sde.sampling(config, "ancestral", "none", snr=0.16, moves=1, steps=1000)
    return config
