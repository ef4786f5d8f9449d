"""EDM on CIFAR-10, with and without labels.

Command:   python main.py --config=configs/edm/cifar10.py:uncond_ddpmpp --workdir=runs/edm_cifar10
Variants:  :uncond_ddpmpp (default), :uncond_ncsnpp, :cond_ddpmpp, :cond_ncsnpp; in the paper VP and VE, after the
           networks
Data:      TensorFlow Datasets' cifar10.
Cost:      200 million images, 390,625 steps of 512; 8 V100 for 2 days (EDM's README).
Expected:  FID 1.97, 1.98, 1.79, 1.79 in the order of the variants, with 35 evaluations (the paper's table 2).
           Without the augmentation (training.augment=0, and training.flip) 2.05, 1.99, 1.88, 1.86.
Paper:     Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from ml_collections import ConfigDict

from configs.bases import arguments, edm, images

VARIANTS = ("uncond_ddpmpp", "uncond_ncsnpp", "cond_ddpmpp", "cond_ncsnpp")


def get_config(variant: str = "uncond_ddpmpp") -> ConfigDict:
    """variant: one of `VARIANTS`."""
    arguments.check(variant, VARIANTS)
    labels, network = variant.split("_")
    classes = 10 if labels == "cond" else 0
    config = ConfigDict()
    images.apply(config, "cifar10", size=32, classes=classes)
    edm.song_unet(config, network, classes=classes, dropout=0.13)
    edm.objective(config)
    edm.training(config, images=200_000_000, batch_size=512, learning_rate=1e-3, half_lives=(500_000,), augment=0.12)
    edm.sampling(config, steps=18)
    return config
