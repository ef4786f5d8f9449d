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


def vp(config: ConfigDict, *, name: str = "vp", continuous: bool = True) -> None:
    """VP or sub-VP ("subvp"), or DDPM's chain. Trained from t = 1e-5 on, sampled to 1e-3, as in the paper."""
    if continuous:
        config.sde = ConfigDict({"name": name, "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-5})
        config.sampling_sde = ConfigDict({"name": name, "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-3})
    else:
        config.sde = ConfigDict({"name": "ddpm", "steps": 1000, "beta_min": 0.1, "beta_max": 20.0})
    condition = "time" if continuous else "step"
    config.parameterisation = ConfigDict({"prediction": "epsilon", "noise_condition": condition})
    _objective(config, continuous=continuous, reduction="mean")


def ve(config: ConfigDict, *, sigma_min: float = 0.01, sigma_max: float, levels: int, continuous: bool = True) -> None:
    """VE, or NCSN's chain of `levels`; the network predicts the score."""
    if continuous:
        config.sde = ConfigDict({"name": "ve", "sigma_min": sigma_min, "sigma_max": sigma_max, "t_min": 1e-5})
    else:
        config.sde = ConfigDict({"name": "smld", "scales": levels, "sigma_min": sigma_min, "sigma_max": sigma_max})
        config.model.update({"sigma_min": sigma_min, "sigma_max": sigma_max, "noise_levels": levels})
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
            "beta_1": 0.9,
            "epsilon": 1e-8,
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


def sampling(config: ConfigDict, predictor: str, corrector: str, *, snr: float, moves: int, steps: int) -> None:
    """Predictor–corrector sampling as published, without the noise of the last step. moves: of the corrector a step."""
    options = {"solver": "pc", "predictor": predictor, "corrector": corrector, "steps": steps, "last": "mean"}
    if corrector != "none":
        options |= {"corrector_steps": moves, "snr": snr}
    config.sampling = ConfigDict({"samplers": ("pc",), "num_samples": 64, "batch_size": 64})
    config.samplers = ConfigDict({"pc": options})
    config.mesh = ConfigDict({"data": -1})
    config.seed = 42
    config.lock()
