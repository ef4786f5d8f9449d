"""EDM on ImageNet, 64×64, with labels: ADM's network.

Command:   python main.py --config=configs/edm/imagenet64.py --workdir=runs/edm_imagenet64
Data:      TensorFlow Datasets' imagenet2012, 16 GB in memory.
Cost:      2.5 billion images, 610,352 steps of 4096; 32 A100 for 13 days (EDM's README).
Expected:  FID 1.36 with 511 evaluations (EDM's README).
Paper:     Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from ml_collections import ConfigDict

from configs.bases import edm, images


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "imagenet", size=64, classes=1000)
    config.model = ConfigDict(
        {
            "name": "adm",
            "channels": 192,
            "blocks_per_resolution": 3,
            "attention_order": "new",
            "dropout": 0.1,
            "classes": 1000,
            "dtype": "bfloat16",
        }
    )
    edm.objective(config)
    edm.training(config, images=2_500_000_000, batch_size=4096, learning_rate=1e-4, half_lives=(50_000_000,))
    edm.sampling(config, steps=256, churn=40.0, churn_min=0.05, churn_max=50.0, noise_scale=1.003)
    return config
