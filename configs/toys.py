"""Points of the plane: an MLP that learns a density in a minute, with exact log-likelihoods to judge it by.

Command:   python main.py --config=configs/toys.py --workdir=runs/toys
Variants:  configs/toys.py:two_moons (default), :swiss_roll, :eight_gaussians, :rings, :checkerboard
Cost:      about a minute for training, samples, likelihood and report on 2 CPU cores, 0.37 M parameters.
Expected:  :checkerboard 0.676 ± 0.006 bits/dim (0.94 nats), where no model can have less than 0.5; :two_moons −0.030
           ± 0.009, where the density that they are drawn from has −0.074
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

from ml_collections import ConfigDict

from configs.bases import arguments

VARIANTS = ("two_moons", "swiss_roll", "eight_gaussians", "rings", "checkerboard")


def get_config(variant: str = "two_moons") -> ConfigDict:
    """variant: one of `VARIANTS`."""
    arguments.check(variant, VARIANTS)
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict({"source": "toys", "name": variant, "records": 20_000})
    config.model = ConfigDict({"name": "mlp", "width": 128, "depth": 4, "fourier_features": 32})
    config.sde = ConfigDict({"name": "vp", "t_min": 1e-4})
    config.parameterisation = ConfigDict({"prediction": "v", "noise_condition": "time", "sigma_data": 0.5})
    config.objective = ConfigDict({"name": "denoising"})
    config.weighting = ConfigDict({"name": "sigma2"})
    config.times = ConfigDict({"name": "uniform", "low_discrepancy": True})
    config.optimiser = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 2e-3,
            "warmup": "100 steps",
            "schedule": "cosine",
            "decay": "3000 steps",
            "gradient_clip": 1.0,
        }
    )
    config.training = ConfigDict(
        {
            "batch_size": 256,
            "duration": "3000 steps",
            "ema_half_lives": ("150 steps",),
            "log_every": "100 steps",
            "sample_every": "1000 steps",
            "save_every": "1000 steps",
            "keep_checkpoints": 2,
        }
    )
    config.sampling = ConfigDict({"samplers": ("ode", "dpmpp_2m"), "num_samples": 2000, "batch_size": 2000})
    config.samplers = ConfigDict(
        {
            "ode": {"solver": "ode", "steps": 1, "rtol": 1e-3, "atol": 1e-3},
            "dpmpp_2m": {"solver": "dpmpp_2m", "steps": 30, "grid": "log_snr", "last": "denoise"},
        }
    )
    config.likelihood = ConfigDict(
        {"batch_size": 2000, "rtol": 1e-3, "atol": 1e-3, "trace": "exact", "bound_draws": 16, "noise_images": 500}
    )
    config.evaluation = ConfigDict({"metrics": ("sliced_wasserstein", "mmd", "frechet")})
    config.mesh = ConfigDict({"data": -1})
    config.lock()
    return config
