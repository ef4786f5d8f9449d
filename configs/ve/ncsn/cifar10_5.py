"""NCSN on CIFAR-10: NCSN's chain of 10 levels from sigma = 1.

Command:   python main.py --config=configs/ve/ncsn/cifar10_5.py --workdir=runs/cifar10_5
Cost:      1,300,000 steps of 128 images; `scripts/benchmark --models` has the seconds of one here.
Expected:  no figure was published with this configuration.
Paper:     Song & Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", NeurIPS 2019.
Ablation:  NCSN with technique 5 of NCSNv2 (1, 2: levels; 4: Langevin moves; 5: averaged weights).
"""

from ml_collections import ConfigDict

from configs.bases import images, score_sde


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, centered=False)
    score_sde.model(config, "ncsn")
    score_sde.ve(config, sigma_max=1.0, levels=10, continuous=False)
    score_sde.training(
        config, iterations=1300000, batch_size=128, ema_rate=0.999, learning_rate=0.001, warmup=0, gradient_clip=0.0
    )
    score_sde.sampling(config, "none", "annealed_langevin", snr=0.316, moves=100, steps=10)
    return config
