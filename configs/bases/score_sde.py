"""What score_sde's experiments have in common: processes, training and samplers (Song et al. 2021, appendices).

The original's `training.continuous=False` is DDPM's or NCSN's chain, of which the networks are told the number of
the step.
"""

import math
from typing import Any

from ml_collections import ConfigDict

MODELS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"name": "ncsnpp", "embedding": "positional"},
    "ncsnpp": {"name": "ncsnpp", "embedding": "positional", "fir": True, "progressive_input": "residual"},
    "ncsnpp_large": {
        "name": "ncsnpp",
        "embedding": "log_fourier",
        "fir": True,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "channel_multipliers": (1, 1, 2, 2, 2, 2, 2),
        "blocks_per_resolution": 2,
        "dropout": 0.0,
    },
    "ddpm": {"name": "ddpm"},
    "ddpm_large": {"name": "ddpm", "channel_multipliers": (1, 1, 2, 2, 4, 4), "dropout": 0.0},
    "ncsn": {"name": "ncsn"},
    "ncsnv2": {"name": "ncsnv2"},
}


def model(config: ConfigDict, name: str, **changes: object) -> None:
    """A row of `MODELS` with changes; data in [0, 1] are centred by the network."""
    config.model = ConfigDict({**MODELS[name], "centered": config.data.low < 0, **changes})


def vp(
    config: ConfigDict,
    *,
    name: str = "vp",
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    steps: int = 1000,
    continuous: bool = True,
) -> None:
    """VP or sub-VP ("subvp"), or DDPM's chain of `steps`. Trained from t = 1e-5 on, sampled to 1e-3, as published."""
    betas = {"beta_min": beta_min, "beta_max": beta_max}
    if continuous:
        config.sde = ConfigDict({"name": name, **betas, "t_min": 1e-5})
        config.sampling_sde = ConfigDict({"name": name, **betas, "t_min": 1e-3})
    else:
        config.sde = ConfigDict({"name": "ddpm", "steps": steps, **betas, "t_min": 1 / steps})
    condition = "time" if continuous else "step"
    config.parameterisation = ConfigDict({"prediction": "epsilon", "noise_condition": condition})
    _objective(config, continuous=continuous, reduction="mean")


def ve(config: ConfigDict, *, sigma_min: float = 0.01, sigma_max: float, levels: int, continuous: bool = True) -> None:
    """VE, or NCSN's chain of `levels`, of which the network knows; it predicts the score."""
    sigmas = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    if continuous:
        config.sde = ConfigDict({"name": "ve", **sigmas, "t_min": 1e-5})
    else:
        config.sde = ConfigDict({"name": "smld", "scales": levels, **sigmas})
        config.model.update({**sigmas, "noise_levels": levels})
    condition = "sigma" if continuous else "step"
    config.parameterisation = ConfigDict({"prediction": "score", "noise_condition": condition})
    _objective(config, continuous=continuous, reduction="sum")


def _objective(config: ConfigDict, *, continuous: bool, reduction: str) -> None:
    config.objective = ConfigDict({"name": "denoising", "reduction": reduction})
    config.weighting = ConfigDict({"name": "sigma2"})
    config.times = ConfigDict({"name": "uniform" if continuous else "steps"})


def training(
    config: ConfigDict,
    *,
    iterations: int,
    batch_size: int,
    ema_rate: float,
    learning_rate: float = 2e-4,
    beta_1: float = 0.9,
    epsilon: float = 1e-8,
    warmup: int = 5000,
    gradient_clip: float = 1.0,
) -> None:
    """Adam with a linear warm-up, on images half of which are mirrored.

    ema_rate: of the original, 0 for no averaging; here its half-life.
    """
    half_life = math.log(2) / -math.log(ema_rate) if ema_rate else 0.01
    config.optimiser = ConfigDict(
        {
            "name": "adam",
            "learning_rate": learning_rate,
            "beta_1": beta_1,
            "epsilon": epsilon,
            "warmup": f"{warmup} steps",
            "gradient_clip": gradient_clip,
        }
    )
    config.training = ConfigDict(
        {
            "batch_size": batch_size,
            "duration": f"{iterations} steps",
            "ema_half_lives": (f"{half_life:.6g} steps",),
            "flip": True,
            "log_every": "50 steps",
            "sample_every": "50000 steps",
            "save_every": "10000 steps",
            "keep_checkpoints": 3,
        }
    )


def sampling(
    config: ConfigDict, predictor: str, corrector: str, *, snr: float, moves: int, steps: int, last: str = "mean"
) -> None:
    """Predictor–corrector sampling as published, without the noise of the last step. moves: of the corrector a step."""
    options = {"solver": "pc", "predictor": predictor, "corrector": corrector, "steps": steps, "last": last}
    if corrector != "none":
        options |= {"corrector_steps": moves, "snr": snr}
    _sampling_by(config, options)


def sampling_by_ode(config: ConfigDict, *, last: str = "denoise") -> None:
    """The probability-flow ODE to the original's tolerances, from T to t_min in one interval."""
    _sampling_by(config, {"solver": "ode", "method": "dopri5", "rtol": 1e-5, "atol": 1e-5, "steps": 1, "last": last})


def _sampling_by(config: ConfigDict, options: dict[str, Any]) -> None:
    name = options["solver"]
    config.sampling = ConfigDict({"samplers": (name,), "num_samples": 64, "batch_size": 64})
    config.samplers = ConfigDict({name: options})
    config.mesh = ConfigDict({"data": -1})
    config.seed = 42
    config.lock()
