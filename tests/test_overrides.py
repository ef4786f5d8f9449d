"""Bad overrides of a config's keys: unknown ones, wrong values, and values that do not go together; see `refuse`."""

import pytest

from tests import program

OVERRIDES = {
    "unknown key": (["--config.training.batch_sise=4"], ["training.batch_sise", "did you mean 'batch_size'"]),
    "unknown section": (["--config.trainin.batch_size=4"], ["trainin.batch_size", "'training.batch_size'"]),
    "unknown section and key": (["--config.x.y=4"], ["unknown key x.y", "training.batch_size"]),
    "section without key": (["--config.training=4"], ["unknown key training "]),
    "too deep": (["--config.training.batch_size.x=4"], ["unknown key training.batch_size.x"]),
    "key of a table's row": (["--config.sde.beta_mim=1"], ["sde.beta_mim", "did you mean 'beta_min'"]),
    "key that chooses the row": (["--config.sde.nam=ve"], ["sde.nam", "did you mean 'name'"]),
    "key of a section without settings": (["--config.data.sourc=digits"], ["data.sourc", "did you mean 'source'"]),
    "several keys": (
        ["--config.seed=x", "--config.model.chanels=8", "--config.sampling.sed=3", "--config.nothing=1"],
        ["seed: must be an integer", "'channels'", "'seed'", "unknown key nothing"],
    ),
    "several values": (
        ["--config.training.batch_size=many", "--config.optimiser.name=adamm", "--config.sde.name=vpp"],
        ["training.batch_size: must be an integer, not many", "'adamm'", "'adam'", "'vpp'", "'vp'"],
    ),
    "sampler": (["--config.sampling.samplers=pc,dim"], ["unknown sampler 'dim'", "did you mean 'ddim'"]),
    "sampler's solver": (["--config.samplers.pc.solver=pd"], ["samplers.pc.solver", "'pd'", "'pc'"]),
    "sampler's key": (["--config.samplers.ddim.etta=1"], ["samplers.ddim.etta", "did you mean 'eta'"]),
    "sampler's value": (["--config.samplers.ddim.eta=2"], ["samplers.ddim", "eta must lie in [0, 1]", "2"]),
    "sampler's grid": (["--config.samplers.ddim.grid=unifrom"], ["'unifrom'", "did you mean 'uniform'"]),
    "sampler's last step": (["--config.samplers.ddim.last=denoised"], ["'denoised'", "did you mean 'denoise'"]),
    "sampler's steps": (["--config.samplers.ddim.steps=0"], ["samplers.ddim", "steps must lie in [1, 1000000]"]),
    "no sampler": (["--config.sampling.samplers="], ["samplers must name at least one"]),
    "same sampler twice": (["--config.sampling.samplers=pc,pc"], ["each once"]),
    "sampler called as a baseline": (
        ["--config.samplers.real.solver=ddim", "--config.sampling.samplers=real"],
        ["'real'", "something else"],
    ),
    "sampler called as a figure's field": (
        ["--config.samplers.metric.solver=ddim", "--config.sampling.samplers=metric"],
        ["'metric'", "something else"],
    ),
    "sampler that is no file name": (
        ["--config.samplers.a/b.solver=ddim", "--config.sampling.samplers=a/b"],
        ["'a/b'"],
    ),
    "data set": (["--config.data.source=digit"], ["data.source", "'digit'", "did you mean 'digits'"]),
    "process": (["--config.sde.name=vpsde"], ["sde.name", "'vpsde'", "did you mean 'vp'", "subvp"]),
    "network": (["--config.model.name=ncsnp"], ["model.name", "'ncsnp'", "did you mean 'ncsnpp'"]),
    "prediction": (["--config.parameterisation.prediction=epsilom"], ["'epsilom'", "did you mean 'epsilon'"]),
    "objective": (["--config.objective.name=denoisin"], ["objective.name", "'denoisin'", "did you mean 'denoising'"]),
    "weighting": (["--config.weighting.name=sigma"], ["weighting.name", "'sigma'", "did you mean 'sigma2'"]),
    "weighting's key": (["--config.weighting.gama=1"], ["weighting.gama"]),
    "times": (["--config.times.name=log_norml"], ["times.name", "'log_norml'", "did you mean 'log_normal'"]),
    "times's value": (["--config.times.name=log_normal", "--config.times.std=0"], ["times", "std must lie in"]),
    "sampling process": (["--config.sampling_sde.name=edn"], ["sampling_sde.name", "'edn'", "did you mean 'edm'"]),
    "half-life": (["--config.training.ema_half_lives=0 steps"], ["ema_half_lives must be more than 0"]),
    "half-life without unit": (["--config.training.ema_half_lives=70"], ["training.ema_half_lives", "steps, epochs"]),
    "no average": (["--config.training.ema_half_lives="], ["ema_half_lives or ema_lengths must name at least one"]),
    "length of an average": (
        ["--config.training.ema_lengths=0.05,0.3"],
        ["ema_lengths must lie in (0, 0.2887], not 0.3"],
    ),
    "lengths that are one": (["--config.training.ema_lengths=0.1,0.1"], ["ema_lengths must name each length once"]),
    "length that is asked for": (
        ["--config.evaluation.ema_length=0.5"],
        ["ema_length must be 0 or lie in (0, 0.2887]"],
    ),
    "negative average": (["--config.evaluation.ema=-1"], ["ema must be at least 0"]),
    "label drop": (["--config.training.label_drop=1.5"], ["label_drop must lie in [0, 1], not 1.5"]),
    "metric": (["--config.evaluation.metrics=frechet_inception"], ["'frechet_inception'", "'frechet'"]),
    "schedule": (["--config.optimiser.schedule=cosin"], ["'cosin'", "did you mean 'cosine'"]),
    "integer": (["--config.training.batch_size=1.5"], ["training.batch_size", "an integer", "1.5"]),
    "integer that is a bool": (["--config.training.batch_size=True"], ["training.batch_size", "an integer"]),
    "integer that is no literal": (["--config.training.batch_size={[]:1}"], ["training.batch_size", "an integer"]),
    "number": (["--config.optimiser.learning_rate=fast"], ["optimiser.learning_rate", "number", "fast"]),
    "tuple": (["--config.model.channel_multipliers=1,b"], ["model.channel_multipliers", "an integer", "b"]),
    "duration without unit": (["--config.training.duration=10"], ["training.duration", "steps, epochs, images"]),
    "duration of unknown unit": (["--config.training.duration=10 hours"], ["training.duration", "10 hours"]),
    "duration of nothing": (["--config.training.duration=0 steps"], ["duration must be more than 0"]),
    "duration without end": (["--config.training.duration=1e999 steps"], ["training.duration"]),
    "batch of nothing": (["--config.training.batch_size=0"], ["batch_size must lie in [1, 1e6], not 0"]),
    "rate": (["--config.optimiser.learning_rate=-1"], ["learning_rate must be positive"]),
    "infinite rate": (["--config.optimiser.learning_rate=1e999"], ["optimiser.learning_rate", "1e999"]),
    "negative seed": (["--config.seed=-1"], ["seed", "-1"]),
    "large seed": (["--config.seed=100000000000000000000"], ["seed", "100000000000000000000"]),
    "negative sampling seed": (["--config.sampling.seed=-1"], ["seed", "-1"]),
    "channels": (["--config.model.channels=2"], ["channels must be at least 4, not 2"]),
    "sides": (["--config.model.channel_multipliers=1,1,1,1,1"], ["sides divisible by 16", "8x8", "16x16"]),
    "attention at no level": (["--config.model.attention_resolutions=7"], ["attention_resolutions [7]"]),
    "process without noise": (["--config.sde.t_min=0"], ["t_min must be positive"]),
    "too many samples": (["--config.sampling.num_samples=9000000000000"], ["num_samples must lie in [1, 1e9]"]),
    "duration beyond the counter": (["--config.training.log_every=1e300 steps"], ["more than a counter"]),
    "duration beyond the decay": (["--config.training.duration=1e9 steps"], ["optimiser.decay", "learning rate"]),
    "devices": (["--config.mesh.data=7"], ["mesh.data=7", "-1 stands for what the others leave"]),
    "weight decay without its optimiser": (["--config.optimiser.weight_decay=0.1"], ["'adamw', 'lion'", "not 'adam'"]),
    "schedule-free training on a schedule": (
        ["--config.optimiser.name=schedule_free", "--config.optimiser.beta_1=0"],
        ["needs schedule 'constant', not 'cosine'", "beta_1 of more than 0"],
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_bad_override(name, tmp_path, refuse):
    overrides, parts = OVERRIDES[name]
    workdir = tmp_path / "new"
    line = refuse(program.flags(workdir, "train", *program.TINY, *overrides), tmp_path)
    for part in parts:
        assert part in line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.sde.T=1000", ["sde: f is nan in float32 at T=1000"]),
        ("--config.sde.t_min=1e-43", ["sde: ", "in float32 at t_min"]),
    ],
)
def test_what_float32_does_not_hold(override, words, tmp_path, refuse):
    """Said after the process's few coefficients were computed, and before anything is changed."""
    line = refuse(program.flags(tmp_path / "new", "train", override), tmp_path, compiles=True)
    for word in words:
        assert word in line


EDM2 = [f"--config.model.{setting}" for setting in ("name=edm2", "attention_resolutions=8", "channels_per_head=8")]
COMBINATIONS = {
    "formula's function": (
        ["--config.sde.name=log_snr", "--config.sde.function=-2*lgo(t)"],
        ["sde.function", "unknown function 'lgo'", "log"],
    ),
    "formula's name": (["--config.sde.name=log_snr", "--config.sde.function=-2*log(x)"], ["unknown name 'x'"]),
    "formula's grammar": (["--config.sde.name=log_snr", "--config.sde.function=-2*log(t"], ["no formula in t"]),
    "pure noise": (
        ["--config.sde.zero_terminal_snr=True", "--config.parameterisation.prediction=epsilon"],
        ["parameterisation: prediction 'epsilon' says nothing of the data at T"],
    ),
    "pure noise, many ways": (
        [
            "--config.sde.zero_terminal_snr=True",
            "--config.parameterisation.noise_condition=log_snr",
            "--config.weighting.name=likelihood",
            "--config.times.name=importance",
            "--config.samplers.ddim.grid=log_snr",
        ],
        [
            "parameterisation: noise_condition 'log_snr' is infinite at T",
            "weighting: 'likelihood' is infinite at T",
            "times: 'importance' needs a finite log_snr",
            "samplers.ddim: grid 'log_snr' needs a finite log_snr",
        ],
    ),
    "learned process": (
        ["--config.sde.name=vdm", "--config.times.name=importance"],
        [
            "objective: a learned process is trained on the bound",
            "needs times.name 'uniform', not 'importance'",
            "noise_condition that is a function of its noise level, such as 'log_snr', not 'time'",
        ],
    ),
    "bound": (
        ["--config.objective.name=bound", "--config.weighting.name=likelihood", "--config.sde.zero_terminal_snr=True"],
        [
            "objective: the bound needs a finite log_snr at T",
            "objective: 'bound' is weighted by itself: set weighting.name to 'vlb', not 'likelihood'",
            "weighting: 'likelihood' is infinite at T",
        ],
    ),
    "uncertainty": (
        [*EDM2, "--config.objective.name=sliced"],
        ["objective: the network's learned uncertainty is for 'denoising': set model.uncertainty_features to 0"],
    ),
    "schedule-free": (
        [*EDM2, "--config.optimiser.name=schedule_free", "--config.optimiser.schedule=constant"],
        ["optimiser: 'schedule_free' averages parameters that this network moves after each update"],
    ),
    "steps": (["--config.times.name=steps"], ["times: 'steps' needs a process with steps of its own (ddpm, smld)"]),
    "labels": (["--config.training.label_drop=0.1"], ["model: training.label_drop=0.1 needs a network with classes"]),
    "classes": (["--config.model.classes=7"], ["model: classes must be 0 or the 10 of the data, not 7"]),
    "average": (
        ["--config.training.ema_half_lives=10 steps,20 steps", "--config.evaluation.ema=2"],
        ["evaluation: ema=2 is none of the 2 averages in training.ema_half_lives and ema_lengths"],
    ),
    "sampling beyond what was trained": (
        ["--config.sampling_sde.name=edm", "--config.sampling_sde.T=1000"],
        ["sampling_sde: its noise levels sigma/alpha", "1000", "lower its T"],
    ),
    "sampling in pure noise": (
        ["--config.sampling_sde.zero_terminal_snr=True"],
        ["sampling_sde: its noise levels sigma/alpha", "inf"],
    ),
    "unrelated ones": (
        ["--config.times.name=steps", "--config.training.label_drop=0.1", "--config.evaluation.ema=1"],
        ["times: ", "model: ", "evaluation: "],
    ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_does_not_go_together(name, tmp_path, refuse):
    """All of it is named in one line, after no more than the process's coefficients were computed."""
    overrides, words = COMBINATIONS[name]
    arguments = program.flags(tmp_path / "new", "train", *program.TINY, *overrides)
    line = refuse(arguments, tmp_path, compiles=True)
    for word in words:
        assert word in line
