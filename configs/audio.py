"""Sounds of one's own: a 1-D U-Net on second-long pieces of WAV files.

Command:   python main.py --config=configs/audio.py --workdir=runs/audio --config.data.folder=DIR
Data:      WAV files of 16,000 samples a second and one channel, in a folder; see docs/data.md for others.
Cost:      some 12 M parameters; hours on an accelerator (not run to its end).
Expected:  sounds like those of the folder, in samples/pc/ as WAV files; its figures have not been measured.
Paper:     Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021; on
           waveforms Kong et al., "DiffWave: A Versatile Diffusion Model for Audio Synthesis", ICLR 2021.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """For a folder that is given as data.folder."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict({"source": "wav", "length": 16384, "rate": 16000, "channels": 1})
    config.model = ConfigDict({"name": "audio_unet", "channels": 32, "dropout": 0.0})
    config.sde = ConfigDict({"name": "vp", "t_min": 1e-4})
    config.parameterisation = ConfigDict({"prediction": "v", "noise_condition": "time", "sigma_data": 0.1})
    config.objective = ConfigDict({"name": "denoising"})
    config.weighting = ConfigDict({"name": "sigma2"})
    config.times = ConfigDict({"name": "uniform", "low_discrepancy": True})
    config.optimiser = ConfigDict({"name": "adam", "learning_rate": 2e-4, "warmup": "1000 steps", "gradient_clip": 1.0})
    config.training = ConfigDict(
        {
            "batch_size": 32,
            "duration": "200000 steps",
            "ema_half_lives": ("5000 steps",),
            "log_every": "100 steps",
            "sample_every": "5000 steps",
            "save_every": "5000 steps",
            "keep_checkpoints": 2,
        }
    )
    config.sampling = ConfigDict({"samplers": ("pc", "ddim"), "num_samples": 64, "batch_size": 32})
    config.samplers = ConfigDict(
        {
            "pc": {"solver": "pc", "steps": 200, "last": "denoise", "snr": 0.16},
            "ddim": {"solver": "ddim", "steps": 50, "last": "denoise"},
        }
    )
    config.likelihood = ConfigDict({"batch_size": 32, "rtol": 1e-3, "atol": 1e-3, "noise_images": 32})
    config.evaluation = ConfigDict({"metrics": ()})
    config.mesh = ConfigDict({"data": -1})
    config.lock()
    return config
