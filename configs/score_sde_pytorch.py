"""A model trained with score_sde or score_sde_pytorch, from its own config: for importing checkpoints of one's own.

Command:   python main.py --mode=import --config=configs/score_sde_pytorch.py:CONFIG.json --workdir=runs/imported
           --import.file=CHECKPOINT.pth, where CONFIG.json holds the original's config, `json.dumps(config.to_dict())`
Cost:      seconds to import; nothing is trained.
Expected:  the same output as the original network, to float32's rounding (tests/test_pretrained.py).
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs.bases import images, score_sde
from score_sde.pretrained import score_sde_pytorch

SETS = {"cifar10": "cifar10", "celeba": "celeba", "celebahq": "celebahq", "ffhq": "ffhq"}
PREDICTORS = {"ancestral_sampling": "ancestral"}
CORRECTORS = {"ald": "annealed_langevin"}


def get_config(path: str) -> ConfigDict:
    """path: of the original's config as JSON."""
    original = json.loads(Path(path).read_text(encoding="utf-8"))
    model, data, training, sampling = (original.get(key, {}) for key in ("model", "data", "training", "sampling"))
    config = ConfigDict()
    _data(config, data)
    name, settings = score_sde_pytorch.settings_of(original)
    config.model = ConfigDict({"name": name, **settings})
    kind = original.get("sde") or training["sde"]
    continuous = original.get("continuous", training.get("continuous"))
    if kind == "vesde":
        sigma_min, sigma_max = float(model["sigma_min"]), float(model["sigma_max"])
        levels = model["num_scales"]
        score_sde.ve(config, sigma_min=sigma_min, sigma_max=sigma_max, levels=levels, continuous=continuous)
    else:
        score_sde.vp(config, name={"vpsde": "vp", "subvpsde": "subvp"}[kind], continuous=continuous)
    score_sde.training(
        config,
        iterations=training.get("n_iters", 1300001) - 1,
        batch_size=training.get("batch_size", 128),
        ema_rate=model["ema_rate"],
    )
    config.training.flip = data.get("random_flip", True)
    predictor, corrector = sampling.get("predictor", "reverse_diffusion"), sampling.get("corrector", "none")
    score_sde.sampling(
        config,
        PREDICTORS.get(predictor, predictor),
        CORRECTORS.get(corrector, corrector),
        snr=sampling.get("snr", 0.16),
        moves=sampling.get("n_steps_each", 1),
        steps=model["num_scales"],
    )
    return config


def _data(config: ConfigDict, data: dict) -> None:
    dataset, size = data["dataset"].lower(), data["image_size"]
    if dataset == "lsun":
        dataset = "lsun_bedroom" if data.get("category") == "bedroom" else "lsun_church"
    centered, channels = data["centered"], data.get("num_channels", 3)
    if dataset in images.SETS:
        images.apply(config, dataset, size=size, centered=centered)
        config.data.channels = channels
        return
    low = -1.0 if centered else 0.0
    config.data = ConfigDict({"source": "synthetic", "size": size, "channels": channels, "low": low})
    config.evaluation = ConfigDict({"metrics": ("frechet_pixels",)})
