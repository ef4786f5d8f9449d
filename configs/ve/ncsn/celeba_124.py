"""NCSN on CelebA at 64x64: NCSN's chain of 500 levels from sigma = 90.

Command:   python main.py --config=configs/ve/ncsn/celeba_124.py --workdir=runs/celeba_124
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song & Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", NeurIPS 2019.
Ablation:  NCSN with techniques 1, 2 and 4 of NCSNv2 (1, 2: levels; 4: Langevin moves; 5: averaged weights).
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "celeba", size=64, centered=False)
    score_sde.model(config, "ncsn")
    score_sde.ve(config, sigma_max=90.0, levels=500, continuous=False)
    score_sde.training(
        config, iterations=1300000, batch_size=128, ema_rate=0.0, learning_rate=0.001, warmup=0, gradient_clip=0.0
    )
    score_sde.sampling(config, "none", "annealed_langevin", snr=0.128, moves=5, steps=500)
    return config
