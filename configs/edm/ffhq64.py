"""EDM on FFHQ, 64×64.

Command:   python main.py --config=configs/edm/ffhq64.py:ddpmpp --workdir=runs/edm_ffhq64
Variants:  :ddpmpp (default), :ncsnpp; in the paper VP and VE, after the networks
Data:      `ffhq/64` of TensorFlow Datasets, 70,000 faces, which is to be made: it has none of its own.
Cost:      200 million images, 781,250 steps of 256; 8 V100 for 4 days (EDM's README).
Expected:  FID 2.39 and 2.53 in the order of the variants, with 79 evaluations (the paper's table 2).
Paper:     Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from ml_collections import ConfigDict

from configs.bases import arguments, edm, images


def get_config(network: str = "ddpmpp") -> ConfigDict:
    """network: one of `edm.NETWORKS`."""
    arguments.check(network, edm.NETWORKS)
    config = ConfigDict()
    images.apply(config, "ffhq", size=64)
    edm.song_unet(config, network, channel_multipliers=(1, 2, 2, 2), dropout=0.05)
    edm.objective(config)
    edm.training(config, images=200_000_000, batch_size=256, learning_rate=2e-4, half_lives=(500_000,), augment=0.15)
    edm.sampling(config, steps=40)
    return config
