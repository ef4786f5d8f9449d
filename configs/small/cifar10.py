"""EDM on CIFAR-10 for one GPU in hours: DDPM++ of 8.8 M parameters, with labels.

Command:   python main.py --config=configs/small/cifar10.py --workdir=runs/small_cifar10
Data:      TensorFlow Datasets' cifar10.
Cost:      30 million images, 117,188 steps of 256; a sixth of the network of configs/edm/cifar10.py and a seventh of
           its images.
Expected:  worse than the FID 1.88 of the whole network and training; its figures have not been measured yet.
Paper:     Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from ml_collections import ConfigDict

from configs.bases import edm, images


def get_config() -> ConfigDict:
    """See the file."""
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, classes=10)
    config.model = ConfigDict(
        {
            "name": "song_unet",
            "channels": 64,
            "blocks_per_resolution": 2,
            "classes": 10,
            "dropout": 0.1,
            "dtype": "bfloat16",
        }
    )
    edm.objective(config)
    edm.training(config, images=30_000_000, batch_size=256, learning_rate=1e-3, half_lives=(500_000,), flip=True)
    config.optimiser.warmup = "1000000 images"
    edm.sampling(config, steps=18)
    return config
