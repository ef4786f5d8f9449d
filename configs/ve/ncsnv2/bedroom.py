"""NCSNv2 on LSUN bedrooms at 128x128: NCSN's chain of 1086 levels from sigma = 190.

Command:   python main.py --config=configs/ve/ncsnv2/bedroom.py --workdir=runs/bedroom
Cost:      2,400,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song & Ermon, "Improved Techniques for Training Score-Based Generative Models", NeurIPS 2020.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "lsun_bedroom", size=128, centered=False)
    score_sde.model(config, "ncsnv2", layout=128)
    score_sde.ve(config, sigma_max=190.0, levels=1086, continuous=False)
    score_sde.training(
        config, iterations=2400000, batch_size=128, ema_rate=0.9999, learning_rate=0.0001, warmup=0, gradient_clip=0.0
    )
    score_sde.sampling(config, "none", "annealed_langevin", snr=0.095, moves=3, steps=1086)
    return config
