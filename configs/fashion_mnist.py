"""A first set of photographs: clothes in 28×28 grey pixels, sized for one CPU.

Command:   python main.py --config=configs/fashion_mnist.py:vp --workdir=runs/fashion_mnist
Variants:  :vp (default), DDPM++ predicting v; :edm, the same network as EDM trains it
Data:      scripts/get_fashion_mnist, or `apt-get install dataset-fashion-mnist`, or --config.data.directory=DIR.
Cost:      20,000 steps of 64 images, 21 epochs, with 1.75 M parameters; some hours on 2 CPU cores (not run to its end).
Expected:  pictures of clothes; its figures have not been measured yet.
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021; :edm
           Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022.
"""

from ml_collections import ConfigDict

from configs.bases import arguments, data_fashion_mnist, edm

VARIANTS = ("vp", "edm")


def get_config(variant: str = "vp") -> ConfigDict:
    """variant: one of `VARIANTS`."""
    arguments.check(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    data_fashion_mnist.apply(config)
    config.model = ConfigDict(
        {
            "name": "song_unet" if variant == "edm" else "ncsnpp",
            "channels": 32,
            "channel_multipliers": (1, 2, 2),
            "blocks_per_resolution": 2,
            "attention_resolutions": (7,),
            "dropout": 0.1,
        }
    )
    if variant == "edm":
        edm.objective(config)
        samplers = {"edm": {"solver": "edm", "grid": "edm", "steps": 17, "last": "denoise"}}
    else:
        config.sde = ConfigDict({"name": "vp", "t_min": 1e-3})
        config.parameterisation = ConfigDict({"prediction": "v", "noise_condition": "time"})
        config.objective = ConfigDict({"name": "denoising"})
        config.weighting = ConfigDict({"name": "sigma2"})
        config.times = ConfigDict({"name": "uniform"})
        samplers = {
            "pc": {"solver": "pc", "steps": 200, "last": "denoise", "snr": 0.16},
            "ddim": {"solver": "ddim", "steps": 50, "last": "denoise"},
        }
    config.optimiser = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "warmup": "500 steps",
            "schedule": "cosine",
            "decay": "20000 steps",
            "gradient_clip": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "batch_size": 64,
            "duration": "20000 steps",
            "ema_half_lives": ("700 steps",),
            "log_every": "50 steps",
            "sample_every": "2000 steps",
            "save_every": "1000 steps",
            "keep_checkpoints": 2,
        }
    )
    config.sampling = ConfigDict({"samplers": tuple(samplers), "num_samples": 1000, "batch_size": 100})
    config.samplers = ConfigDict(samplers)
    config.likelihood = ConfigDict({"batch_size": 100, "rtol": 1e-3, "atol": 1e-3})
    config.mesh = ConfigDict({"data": -1})
    config.lock()
    return config
