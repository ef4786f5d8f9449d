"""DDPM on CelebA-HQ at 256x256: DDPM's chain of 1000 steps.

Command:   python main.py --config=configs/vp/ddpm/celebahq.py --workdir=runs/celebahq
Cost:      2,400,000 steps of 64 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "celebahq", size=256, centered=True)
    score_sde.model(config, "ddpm_large")
    score_sde.vp(config, continuous=False)
    score_sde.training(config, iterations=2400000, batch_size=64, ema_rate=0.9999, learning_rate=2e-05)
    score_sde.sampling(config, "ancestral", "none", snr=0.075, moves=1, steps=1000)
    return config
