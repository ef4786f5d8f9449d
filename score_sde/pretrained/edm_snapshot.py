"""Snapshots of EDM and EDM2: what is in one, and which settings make its network.

A snapshot holds objects of NVIDIA's "persistent classes", which record the arguments of their constructors. The
outermost is a preconditioning around a network:

    VPPrecond    of VP, predicts ε             EDMPrecond   EDM's
    VEPrecond    of VE, predicts −ε            Precond      EDM2's, the same with a learned uncertainty

Not iDDPMPrecond: its levels are those of `cosine` with offset C_2 at t = i/M, but its network is told i − 1, and that
process has no steps to be numbered here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from score_sde.errors import UserError
from score_sde.models.adm import ADM
from score_sde.models.edm import SongUNet
from score_sde.models.edm2 import EDM2
from score_sde.pretrained.pickles import Record
from score_sde.pretrained.tensors import listed

Arguments = dict[str, Any]
HEAD_CHANNELS = 64  # of a DhariwalUNet
# Settings that do not change what a trained network computes, or that `edm.convert` allows for.
FREE = ("dropout", "dtype", "remat", "attention_order", "heads", "resample_convolution")


class Snapshot(NamedTuple):
    """What a config must say for the network of a snapshot. shape: (height, width, channels) of its samples.

    parameterisation, sde: settings of the config's sections, of those that matter. negated: of `edm.convert`.
    """

    settings: SongUNet | ADM | EDM2
    shape: tuple[int, int, int]
    parameterisation: dict[str, Any]
    sde: dict[str, Any]
    negated: bool


def flat_state(module: Record | Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters and buffers of a tree of modules by their dotted names, those that are None left out."""
    state = module if isinstance(module, Mapping) else module.state
    arrays: dict[str, np.ndarray] = {}
    for kind in ("_parameters", "_buffers"):
        arrays |= {f"{prefix}{name}": each for name, each in state.get(kind, {}).items() if each is not None}
    for name, child in state.get("_modules", {}).items():
        if child is not None:
            arrays |= flat_state(child, f"{prefix}{name}.")
    return arrays


# Parameters of the constructors in their order, with their defaults; `REQUIRED` where they have none.
REQUIRED = object()
WITHOUT_STEPS = (
    "its network is told the number of a step of the cosine schedule, and the process 'cosine' here has no steps"
)
INTERFACE = {"img_resolution": REQUIRED, "img_channels": REQUIRED, "label_dim": 0, "use_fp16": False}
PRECONDITIONINGS: dict[str, Arguments] = {
    "VPPrecond": INTERFACE | {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "VEPrecond": INTERFACE | {"sigma_min": 0.02, "sigma_max": 100.0, "model_type": "SongUNet"},
    "EDMPrecond": INTERFACE
    | {"sigma_min": 0.0, "sigma_max": float("inf"), "sigma_data": 0.5, "model_type": "DhariwalUNet"},
    "Precond": INTERFACE | {"label_dim": REQUIRED, "use_fp16": True, "sigma_data": 0.5, "logvar_channels": 128},
}
SONG_UNET: Arguments = {
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "label_dropout": 0,  # of training
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
DHARIWAL_UNET: Arguments = {
    "augment_dim": 0,
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
    "dropout": 0.1,
    "label_dropout": 0,  # of training
}
EDM2_UNET: Arguments = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "num_blocks": 3,
    "attn_resolutions": (16, 8),
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "resample_filter": (1, 1),
    "channels_per_head": 64,
    "dropout": 0.0,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256.0,
}


def described(record: Record) -> Snapshot:
    """The settings that make the snapshot's network. Raises UserError where this project has no such network."""
    name = record.class_name
    if name not in PRECONDITIONINGS:
        why = f"; {WITHOUT_STEPS}" if name == "iDDPMPrecond" else ""
        raise UserError(f"snapshots of class {name!r} are not known (known: {', '.join(PRECONDITIONINGS)}){why}")
    order = PRECONDITIONINGS[name]
    if len(record.init_args) > len(order):
        raise UserError(f"{name} of the snapshot has {len(record.init_args)} arguments, at most {len(order)} are known")
    positional = dict(zip(order, record.init_args, strict=False))
    given = {**order, **positional, **record.init_kwargs}
    absent = [key for key, value in given.items() if value is REQUIRED]
    if absent:
        raise UserError(f"{name} of the snapshot does not say its {listed(absent)}")
    own = {key: given.pop(key) for key in order}
    kind = own.get("model_type", "UNet")
    if kind not in NETWORKS:
        raise UserError(f"networks of class {kind!r} are not known (known: {', '.join(NETWORKS)})")
    defaults, settings_of = NETWORKS[kind]
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise UserError(f"{kind} of the snapshot has arguments that are not known: {listed(unknown)}")
    settings = settings_of(own, {**defaults, **given})
    parameterisation, sde = MEANINGS[name](own)
    side = int(own["img_resolution"])
    return Snapshot(settings, (side, side, int(own["img_channels"])), parameterisation, sde, name == "VEPrecond")


def check_settings(found: Snapshot, settings: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError unless a network of these settings for samples of `shape` computes what the snapshot's does."""
    if type(settings) is not type(found.settings):
        kinds = (type(found.settings).__name__, type(settings).__name__)
        raise UserError("the snapshot's network is a {}, the config's a {}".format(*kinds))
    names = [field.name for field in dataclasses.fields(settings) if field.name not in FREE]
    pairs = [(name, getattr(found.settings, name), getattr(settings, name)) for name in names]
    other = [f"{name} {theirs!r}, not {ours!r}" for name, theirs, ours in pairs if theirs != ours]
    other += [f"samples of shape {found.shape}, not {shape}"] if found.shape != shape else []
    if other:
        raise UserError(f"the snapshot's network is another than the config's: {listed(other)}")


def _edm_meaning(own: Arguments) -> tuple[Arguments, Arguments]:
    edm = {"prediction": "edm", "noise_condition": "edm", "input_scale": "unit_variance"}
    return edm | {"sigma_data": float(own["sigma_data"])}, {}


def _vp_meaning(own: Arguments) -> tuple[Arguments, Arguments]:
    if own["M"] != 1000:
        raise UserError(f"VPPrecond of the snapshot has M={own['M']} steps; only 1000, labels of 999 t, are known")
    low, slope = float(own["beta_min"]), float(own["beta_d"])
    epsilon = {"prediction": "epsilon", "noise_condition": "time", "input_scale": "none"}
    return epsilon, {"name": "vp", "beta_min": low, "beta_max": low + slope, "T": 1.0}


def _ve_meaning(own: Arguments) -> tuple[Arguments, Arguments]:
    epsilon = {"prediction": "epsilon", "noise_condition": "log_half_sigma", "input_scale": "none"}
    return epsilon, {"name": "ve", "sigma_min": float(own["sigma_min"]), "sigma_max": float(own["sigma_max"])}


MEANINGS: dict[str, Callable[[Arguments], tuple[Arguments, Arguments]]] = {
    "VPPrecond": _vp_meaning,
    "VEPrecond": _ve_meaning,
    "EDMPrecond": _edm_meaning,
    "Precond": _edm_meaning,
}


def _song_unet(own: Arguments, model: Arguments) -> SongUNet:
    return SongUNet(
        channels=int(model["model_channels"]),
        channel_multipliers=_integers(model["channel_mult"]),
        blocks_per_resolution=int(model["num_blocks"]),
        attention_resolutions=_heights(own, model),
        embedding=model["embedding_type"],
        noise_multiplier=int(model["channel_mult_noise"]),
        embedding_multiplier=int(model["channel_mult_emb"]),
        encoder=model["encoder_type"],
        decoder=model["decoder_type"],
        resample_filter=tuple(map(float, model["resample_filter"])),
        dropout=float(model["dropout"]),
        classes=int(own["label_dim"]),
        augment_features=int(model["augment_dim"]),
    )


def _adm(own: Arguments, model: Arguments) -> ADM:
    """The same network as guided-diffusion's, in its norms where all widths are at least 128 channels.

    Where a width is less than one head's there is no attention.
    """
    channels, multipliers = int(model["model_channels"]), _integers(model["channel_mult"])
    widths = [channels * multiplier for multiplier in multipliers]
    if widths[-1] < HEAD_CHANNELS:
        raise UserError(f"DhariwalUNet has no attention in a middle of {widths[-1]} channels, as ADM always has")
    wide = {int(own["img_resolution"]) >> level for level, width in enumerate(widths) if width >= HEAD_CHANNELS}
    return ADM(
        channels=channels,
        channel_multipliers=tuple(map(float, multipliers)),
        channels_per_group=4 if min(widths) < 128 else 1,
        embedding_multiplier=int(model["channel_mult_emb"]),
        blocks_per_resolution=int(model["num_blocks"]),
        attention_resolutions=tuple(height for height in _heights(own, model) if height in wide),
        head_channels=HEAD_CHANNELS,
        attention_order="new",
        dropout=float(model["dropout"]),
        classes=int(own["label_dim"]),
        augment_features=int(model["augment_dim"]),
    )


def _edm2(own: Arguments, model: Arguments) -> EDM2:
    return EDM2(
        channels=int(model["model_channels"]),
        channel_multipliers=_integers(model["channel_mult"]),
        blocks_per_resolution=int(model["num_blocks"]),
        attention_resolutions=_heights(own, model),
        channels_per_head=int(model["channels_per_head"]),
        noise_multiplier=int(model["channel_mult_noise"] or 0),
        embedding_multiplier=int(model["channel_mult_emb"] or 0),
        resample_filter=tuple(map(float, model["resample_filter"])),
        label_balance=float(model["label_balance"]),
        concatenation_balance=float(model["concat_balance"]),
        residual_balance=float(model["res_balance"]),
        attention_balance=float(model["attn_balance"]),
        clip=float(model["clip_act"] or 0.0),
        uncertainty_features=int(own["logvar_channels"]),
        dropout=float(model["dropout"]),
        classes=int(own["label_dim"]),
    )


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(map(int, values))


def _heights(own: Arguments, model: Arguments) -> tuple[int, ...]:
    """Those with attention that the network comes to."""
    heights = [int(own["img_resolution"]) >> level for level in range(len(model["channel_mult"]))]
    return tuple(height for height in _integers(model["attn_resolutions"]) if height in heights)


NETWORKS: dict[str, tuple[Arguments, Callable[[Arguments, Arguments], SongUNet | ADM | EDM2]]] = {
    "SongUNet": (SONG_UNET, _song_unet),
    "DhariwalUNet": (DHARIWAL_UNET, _adm),
    "UNet": (EDM2_UNET, _edm2),
}
