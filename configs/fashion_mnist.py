"""A first set of photographs: clothes in 28×28 grey pixels, sized for two CPU cores.

Command:   python main.py --config=configs/fashion_mnist.py:edm --workdir=runs/fashion_mnist
Variants:  :edm (default), EDM's form of DDPM++; :class, the same told the class; :vp, DDPM++ predicting v under VP
Data:      scripts/get_fashion_mnist, or `apt-get install dataset-fashion-mnist`, or --config.data.directory=DIR.
Cost:      38,000 steps of 16 images, 10.1 epochs, with 0.74 M parameters; 115 minutes of one core.
Expected:  Fréchet distance (fashion_cnn, n = 5,000, floor 0.80) 3.2; :class 1.7, with 87 % recognised as the class
           asked for; 3.2 bits/dim: docs/results.md. :vp has not been trained.
Paper:     Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022; :vp
           Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import arguments, data_fashion_mnist, edm

VARIANTS = ("edm", "class", "vp")
CLASSES = 10


def get_config(variant: str = "edm") -> ConfigDict:
    """variant: one of `VARIANTS`."""
    arguments.check(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    data_fashion_mnist.apply(config)
    config.model = ConfigDict(
        {
            "name": "ncsnpp" if variant == "vp" else "song_unet",
            "channels": 16,
            "channel_multipliers": (1, 2, 4),
            "blocks_per_resolution": 1,
            "attention_resolutions": (7,),
            "dropout": 0.0,
            "classes": CLASSES if variant == "class" else 0,
        }
    )
    if variant == "vp":
        config.sde = ConfigDict({"name": "vp", "t_min": 1e-3})
        config.parameterisation = ConfigDict({"prediction": "v", "noise_condition": "time"})
        config.objective = ConfigDict({"name": "denoising"})
        config.weighting = ConfigDict({"name": "sigma2"})
        config.times = ConfigDict({"name": "uniform"})
        samplers = {
            "pc": {"solver": "pc", "steps": 200, "last": "denoise", "snr": 0.16},
            "ddim": {"solver": "ddim", "steps": 50, "last": "denoise"},
        }
    else:
        edm.objective(config)
        config.times.low_discrepancy = True
        samplers = {"sde_dpmpp_2m": {"solver": "sde_dpmpp_2m", "grid": "edm", "steps": 17, "last": "denoise"}}
    config.optimiser = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "warmup": "200 steps",
            "schedule": "inverse_sqrt",
            "decay": "2000 steps",
            "gradient_clip": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "batch_size": 16,
            "duration": "38000 steps",
            "ema_half_lives": (),
            "ema_lengths": (0.1,),
            "log_every": "50 steps",
            "sample_every": "1000 steps",
            "save_every": "500 steps",
            "keep_checkpoints": 2,
            "keep_every": "2000 steps",
        }
    )
    label = "all" if variant == "class" else "none"
    config.sampling = ConfigDict({"samplers": tuple(samplers), "num_samples": 5000, "batch_size": 250, "label": label})
    config.samplers = ConfigDict(samplers)
    config.likelihood = ConfigDict({"images": 1000, "batch_size": 100, "rtol": 1e-3, "atol": 1e-3})
    config.mesh = ConfigDict({"data": -1})
    config.lock()
    return config
