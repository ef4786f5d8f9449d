"""A model trained with score_sde or score_sde_pytorch, from its own config: for importing checkpoints of one's own.

What the original's config says of network, process, training and sampler holds here; what cannot is named.

Command:   python main.py --mode=import --config=configs/score_sde_pytorch.py:CONFIG.json --workdir=runs/imported
           --import.file=CHECKPOINT.pth, where CONFIG.json holds the original's config, `json.dumps(config.to_dict())`
Cost:      seconds to import; nothing is trained.
Expected:  the same output as the original network, to float32's rounding (tests/test_pretrained.py).
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.bases import images, score_sde
from score_sde.errors import Checks, UserError, closest
from score_sde.pretrained import score_sde_pytorch

# The original's keys that are used here, those of the network by `settings_of`, and the type of each.
TYPES: dict[type, tuple[str, ...]] = {
    object: tuple(
        f"model.{key}" for key in (*score_sde_pytorch.NAMES, *score_sde_pytorch.SAME, "name", "normalization")
    ),
    str: (
        *("data.dataset", "data.category", "training.sde", "optim.optimizer"),
        *("sampling.method", "sampling.predictor", "sampling.corrector"),
    ),
    int: (
        *("seed", "model.num_scales", "data.image_size", "data.num_channels", "optim.warmup", "sampling.n_steps_each"),
        *("training.batch_size", "training.n_iters", "training.log_freq", "training.snapshot_freq"),
        "training.snapshot_freq_for_preemption",
    ),
    float: (
        *("model.ema_rate", "model.beta_min", "model.beta_max", "model.sigma_min", "model.sigma_max", "sampling.snr"),
        *("optim.lr", "optim.beta1", "optim.eps", "optim.grad_clip", "optim.weight_decay"),
    ),
    bool: (
        *("data.centered", "data.random_flip", "data.uniform_dequantization"),
        *("training.continuous", "training.reduce_mean"),
        *("training.likelihood_weighting", "sampling.noise_removal", "sampling.probability_flow"),
    ),
}
KEYS = {key: kind for kind, keys in TYPES.items() for key in keys}
NEEDED = (
    *("model.name", "model.num_scales", "model.ema_rate", "model.sigma_min"),
    *("model.sigma_max", "data.dataset", "data.image_size", "data.centered"),
    *("training.sde", "training.continuous"),
)
# What changes nothing here: keys that the original's code does not read, where its files are, how and how often it
# evaluates, how a network began that has been trained since.
WITHOUT_EFFECT = (
    *("model.attention_type", "model.conv_size", "model.init_scale", "model.interpolation", "model.sigma_begin"),
    *("data.channels", "data.tfrecords_path", "optim.amsgrad", "device"),
    *("training.continuouse", "training.eval_freq", "training.loss", "training.n_jitted_steps"),
    "training.snapshot_sampling",
)
SECTIONS = ("model", "data", "training", "optim", "sampling")  # and `eval`, all of it without effect
PROCESSES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "subvp"}
PREDICTORS = {"ancestral_sampling": "ancestral"}
CORRECTORS = {"ald": "annealed_langevin"}


def get_config(path: str) -> ConfigDict:
    """path: of the original's config as JSON."""
    original = _read(Path(path))
    config = ConfigDict()
    _data(config, **original["data"])
    name, settings = score_sde_pytorch.settings_of(original)
    config.model = ConfigDict({"name": name, **settings})
    _process(config, original["model"], original["training"])
    _training(config, original)
    _sampling(config, original["model"]["num_scales"], **original["sampling"])
    config.seed = original["seed"]
    return config


def _read(path: Path) -> dict[str, Any]:
    """The sections, with the keys that are used. Raises UserError that names all that is wrong with them."""
    try:
        original = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the original's config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the original's config {path} is not JSON: {error}") from error
    if not isinstance(original, dict) or not all(isinstance(original.get(each, {}), dict) for each in SECTIONS):
        raise UserError(f"the original's config {path} must hold the sections {', '.join(SECTIONS)}")
    # Where a config was recorded by hand, the two that matter of `training` may stand beside the sections.
    beside = {key: original[key] for key in ("sde", "continuous") if key in original}
    original = {key: value for key, value in original.items() if key not in beside}
    original["training"] = {**beside, **original.get("training", {})}
    flat = {key: value for key, value in original.items() if key not in (*SECTIONS, "eval")}
    flat |= {f"{each}.{key}": value for each in SECTIONS for key, value in original.get(each, {}).items()}
    try:
        _check(flat)
    except UserError as error:
        raise UserError(f"the original's config {path}: {error}") from error
    as_kind = lambda key: float(flat[key]) if KEYS[key] is float else flat[key]
    used = {
        each: {key: as_kind(f"{each}.{key}") for key in original.get(each, {}) if f"{each}.{key}" in KEYS}
        for each in SECTIONS
    }
    return {**used, "seed": flat.get("seed", 42)}


def _check(flat: dict[str, Any]) -> None:
    """Raises UserError unless the keys are known, with what they must hold, and none is missing."""
    with Checks() as check:
        missing = [key for key in NEEDED if key not in flat]
        check.that(not missing, f"missing are {', '.join(missing)}")
        for key, value in flat.items():
            kind = KEYS.get(key)
            if kind is None:
                unknown = key not in WITHOUT_EFFECT
                of_network = key.startswith("model.")
                check.that(not (unknown and of_network), f"unknown key {key} ({closest(key, KEYS)})")
                if unknown and not of_network:
                    print(f"the original's config: {key} is not known and without effect here")
                continue
            fits = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
            fits = fits or (kind is float and type(value) is int)
            check.that(fits, f"{key} must be of type {kind.__name__}, not {value!r}")


def _data(
    config: ConfigDict,
    *,
    dataset: str,
    image_size: int,
    centered: bool,
    category: str = "",
    num_channels: int = 3,
    random_flip: bool = True,
    uniform_dequantization: bool = False,
) -> None:
    """Synthetic images in the place of a set that the original does not have. random_flip: see `_training`.

    Without dequantisation the original's levels are 256 points from 0 or −1 to 1; here the middles of the intervals."""
    name = f"lsun_{category.removesuffix('_outdoor')}" if dataset.lower() == "lsun" else dataset.lower()
    if name in images.SETS:
        images.apply(config, name, size=image_size, centered=centered)
        config.data.channels = num_channels
    else:
        unknown = f"{dataset} {category}".strip()
        print(f"there is no data set {unknown} here; synthetic images stand in for it, see data.source")
        config.data = ConfigDict({"source": "synthetic", "size": image_size, "channels": num_channels})
        config.evaluation = ConfigDict({"metrics": ("frechet",)})
    low = -1.0 if centered else 0.0
    half = 0.0 if uniform_dequantization else (1.0 - low) / 255 / 2
    config.data.update({"low": low - half, "high": 1.0 + half})


def _process(config: ConfigDict, model: dict[str, Any], training: dict[str, Any]) -> None:
    kind, continuous = training["sde"].lower(), training["continuous"]
    by_likelihood = training.get("likelihood_weighting", False)
    with Checks() as check:
        check.name("training.sde", kind, PROCESSES)
        check.that(
            continuous or kind != "subvpsde", "training.sde 'subvpsde' needs training.continuous: it has no chain"
        )
        check.that(continuous or not by_likelihood, "training.likelihood_weighting needs training.continuous")
    levels = model["num_scales"]
    if kind == "vesde":
        score_sde.ve(
            config, sigma_min=model["sigma_min"], sigma_max=model["sigma_max"], levels=levels, continuous=continuous
        )
    else:
        betas = {key: model[key] for key in ("beta_min", "beta_max") if key in model}
        score_sde.vp(config, name=PROCESSES[kind], **betas, steps=levels, continuous=continuous)
    config.objective.reduction = "mean" if training.get("reduce_mean", False) else "sum"
    if by_likelihood:
        config.weighting.name = "likelihood"


def _training(config: ConfigDict, original: dict[str, Any]) -> None:
    training, optim = original["training"], original["optim"]
    with Checks() as check:
        optimizer, decay = optim.get("optimizer", "Adam"), optim.get("weight_decay", 0)
        check.that(optimizer == "Adam", f"optim.optimizer {optimizer!r} is not known; the original has 'Adam'")
        check.that(decay == 0, f"optim.weight_decay {decay}, a part of the gradient, is not known, 0 alone")
    score_sde.training(
        config,
        iterations=training.get("n_iters", 1300001) - 1,
        batch_size=training.get("batch_size", 128),
        ema_rate=original["model"]["ema_rate"],
        learning_rate=optim.get("lr", 2e-4),
        beta_1=optim.get("beta1", 0.9),
        epsilon=optim.get("eps", 1e-8),
        warmup=optim.get("warmup", 5000),
        gradient_clip=max(0.0, optim.get("grad_clip", 1.0)),  # the original's negative ones are none
    )
    config.training.flip = original["data"].get("random_flip", True)
    every = {"log_freq": "log_every", "snapshot_freq": "sample_every", "snapshot_freq_for_preemption": "save_every"}
    for key, ours in every.items():
        if key in training:
            config.training[ours] = f"{training[key]} steps"


def _sampling(
    config: ConfigDict,
    steps: int,
    *,
    method: str = "pc",
    predictor: str = "reverse_diffusion",
    corrector: str = "none",
    n_steps_each: int = 1,
    snr: float = 0.16,
    noise_removal: bool = True,
    probability_flow: bool = False,
) -> None:
    predictor, corrector = predictor.lower(), corrector.lower()
    with Checks() as check:
        check.name("sampling.method", method.lower(), ("pc", "ode"))
        flows = not probability_flow or method.lower() == "ode" or predictor in ("euler_maruyama", "none")
        check.that(flows, f"sampling.probability_flow is known with predictor 'euler_maruyama', not {predictor!r}")
    if method.lower() == "ode":
        score_sde.sampling_by_ode(config, last="denoise" if noise_removal else "none")
        return
    if probability_flow and predictor == "euler_maruyama":
        predictor = "probability_flow"
    score_sde.sampling(
        config,
        PREDICTORS.get(predictor, predictor),
        CORRECTORS.get(corrector, corrector),
        snr=snr,
        moves=n_steps_each,
        steps=steps,
        last="mean" if noise_removal else "none",
    )
