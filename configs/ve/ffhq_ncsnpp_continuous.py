"""NCSN++ on FFHQ at 1024x1024: VE to sigma = 1348.

Command:   python main.py --config=configs/ve/ffhq_ncsnpp_continuous.py --workdir=runs/ffhq_ncsnpp_continuous
Cost:      2,400,000 steps of 8 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "ffhq", size=1024, centered=False)
    score_sde.model(
        config,
        "ncsnpp_large",
        channels=16,
        channel_multipliers=(1, 2, 4, 8, 16, 32, 32, 32),
        blocks_per_resolution=1,
        scale_by_sigma=True,
    )
    score_sde.ve(config, sigma_max=1348.0, levels=2000)
    config.objective.reduction = "mean"  # as the original has it here
    score_sde.training(config, iterations=2400000, batch_size=8, ema_rate=0.9999)
    score_sde.sampling(config, "reverse_diffusion", "langevin", snr=0.15, moves=1, steps=2000)
    return config
