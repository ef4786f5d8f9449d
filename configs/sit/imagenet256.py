"""SiT on ImageNet, 256×256, with labels: latents of 32×32 with 4 channels; the linear interpolant, and its velocity.

Command:   python main.py --config=configs/sit/imagenet256.py:XL/2 --workdir=runs/sit_imagenet256
Variants:  :S/2, :S/4, :S/8, :B/2 … :XL/2 (default), :XL/4, :XL/8, a size and the side of a patch
Data:      synthetic images of the latents' shape: there is no source of encoded latents yet, so nothing that is
           trained with it as it stands is worth anything.
Cost:      400,000 steps of 256 images (the paper's comparison); :XL/2 was trained for 7,000,000.
Expected:  FID 57.6, 33.0, 18.8, 17.2 of S/2, B/2, L/2, XL/2 after 400,000 steps, without guidance, with 250 evaluations
           (the paper's table 1); 2.06 of XL/2 after 7,000,000 with guidance of 1.5 (its abstract). Time runs from
           data to noise here: the network is told one minus the paper's t.
Paper:     Ma et al., "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
           Transformers", ECCV 2024.
"""

from ml_collections import ConfigDict

from configs.bases import dit, guided_diffusion


def get_config(network: str = "XL/2") -> ConfigDict:
    """network: one of `dit.NETWORKS`."""
    config = ConfigDict()
    dit.apply(config, network)
    config.sde = ConfigDict({"name": "rectified_flow"})
    config.parameterisation = ConfigDict({"prediction": "velocity", "noise_condition": "unit_time"})
    config.objective = ConfigDict({"name": "denoising"})
    config.weighting = ConfigDict({"name": "velocity"})
    config.times = ConfigDict({"name": "uniform"})
    guided_diffusion.training(
        config,
        steps=400_000,
        batch_size=256,
        learning_rate=1e-4,
        flip=False,  # images are to be mirrored before they are encoded
        optimiser="adamw",
        label_drop=0.1,
    )
    guided_diffusion.sampling(
        config, {"heun": {"steps": 125, "last": "denoise"}, "ancestral": {"steps": 250, "last": "mean"}}
    )
    return config
