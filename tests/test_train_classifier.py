"""Training of a noise-conditional classifier: its loss against a closed form, its step, and the mode."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from score_sde import rng
from score_sde.data import Levels
from score_sde.denoiser import Parameterisation
from score_sde.distributed.mesh import AXES
from score_sde.errors import UserError
from score_sde.experiment import train_classifier
from score_sde.losses import TIMES, Times
from score_sde.losses.classification import ClassifierModel, classify
from score_sde.models import Classifier
from score_sde.sde import VE, VP
from score_sde.training.classifier import make_classifier_step
from score_sde.training.ema import Exponential
from score_sde.training.optimiser import Optimiser
from score_sde.training.state import TrainState, Window
from tests import program
from tests.test_training_modes import steps

MEAN = 0.7  # of label 1; that of label 0 is −MEAN


def two_points(sde, x_t, t):
    """log p(y | x_t) of x_0 = ±MEAN, to a constant: −(x_t ∓ α MEAN)²/2σ²."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    return -((x_t - alpha * jnp.array([[-MEAN, MEAN]])) ** 2) / (2 * sigma**2)


@pytest.mark.parametrize("t", [0.1, 0.4])
def test_the_loss_of_the_exact_classifier(t):
    """E −log p(y | x_t) = E log(1 + e^{−2 a (a + ε)}) with a = α MEAN/σ, and y is likeliest with probability Φ(a)."""
    count, sde = 20_000, VP()
    label = jnp.arange(count) % 2
    x_0, times = jnp.where(label == 1, MEAN, -MEAN)[:, None], jnp.full(count, t)
    keys = rng.for_samples(jax.random.key(0), jnp.arange(count))
    found = classify(lambda x, t: two_points(sde, x, t), sde, x_0, label, keys, times)
    a = float(sde.alpha(times[:1])[0] * MEAN / sde.sigma(times[:1])[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    loss = np.sum(weights * np.logaddexp(0, -2 * a * (a + nodes))) / math.sqrt(2 * math.pi)
    right = 0.5 * (1 + math.erf(a / math.sqrt(2)))
    # 5 standard errors of the mean.
    assert abs(float(found.loss.mean()) - loss) < 5 * float(found.loss.std()) / math.sqrt(count)
    assert abs(float(found.correct.mean()) - right) < 5 * math.sqrt(right * (1 - right) / count)


def test_the_classifier_is_given_the_noise_and_the_scaled_image():
    """As the parameterisation says: log σ̄ = log σ for VE, and x_t of unit variance."""
    sde = VE(sigma_max=50.0)
    own = Parameterisation(noise_condition="log_sigma", input_scale="unit_variance", sigma_data=0.5)
    asked = lambda params, x, noise, *, train, rng: jnp.stack([x[:, 0], noise], axis=1)
    model = ClassifierModel(sde=sde, parameterisation=own, apply=asked)
    x, t = jnp.ones((3, 1)), jnp.array([0.1, 0.5, 1.0])
    sigma = np.asarray(sde.sigma(t), np.float64)
    given = np.stack([1 / np.sqrt(0.25 + sigma**2), np.log(sigma)], axis=1)
    np.testing.assert_allclose(model.logits(None, x, t), given, rtol=1e-5)


@pytest.mark.usefixtures("jax_rules")
def test_the_step_learns_to_tell_dark_from_bright():
    """From log 2, of knowing nothing, downward; at most times there is little left to see."""
    optimiser = Optimiser(learning_rate=0.1).build(optax.constant_schedule(0.1))
    mean = lambda params, x, noise, *, train, rng: params["w"] * x.mean(axis=(1, 2, 3))[:, None] + params["b"]
    model = ClassifierModel(sde=VP(), parameterisation=Parameterisation(), apply=mean)
    step = jax.jit(
        make_classifier_step(
            model=model,
            times=Times(TIMES["uniform"]()),
            optimiser=optimiser,
            levels=Levels(256),
            profiles=[Exponential(6.6)],
            seed=0,
        )
    )
    params = {"w": jnp.zeros((1, 2)), "b": jnp.zeros((1, 2))}
    state = TrainState.create(params, optimiser, [Exponential(6.6)])
    label = jnp.arange(64, dtype=jnp.int32) % 2
    batch = {
        "image": jnp.broadcast_to((label * 200).astype(jnp.uint8)[:, None, None, None], (64, 8, 8, 1)),
        "label": label,
    }
    losses = []
    for _ in range(60):
        state = step(TrainState(**{**vars(state), "window": Window.empty()}), batch)
        losses.append(float(state.window.loss))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert np.mean(losses[-10:]) < 0.5
    assert float(state.params["w"][0, 1]) > 0 > float(state.params["w"][0, 0])


# --- the mode ---------------------------------------------------------------------------------------------------------

TINY = (
    *program.TINY_TRAINING,
    "--config.classifier.name=wide_resnet",
    "--config.classifier.blocks_per_group=1",
    "--config.classifier.channel_multiplier=1",
    "--config.classifier.batch_size=16",
    "--config.classifier.learning_rate=0.003",
    "--config.training.sample_every=3 steps",
)


def duration(count):
    return f"--config.classifier.duration={count} steps"


def lines(workdir):
    return [json.loads(line) for line in (workdir / "classifier" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    assert program.main(program.flags(path, "train_classifier", *TINY, duration(6))) == 0
    return path


def test_it_is_kept_in_a_folder_of_its_own(trained):
    assert [path.name for path in (trained / "classifier" / "checkpoints").iterdir() if path.name.isdigit()] == ["6"]
    assert not (trained / "checkpoints").exists()
    logged = lines(trained)
    assert all(np.isfinite(line["loss"]) for line in logged if "loss" in line)
    tested = [line for line in logged if "accuracy" in line]
    assert [line["step"] for line in tested] == [3, 6]
    for line in tested:
        quarters = [line[f"accuracy_quarter_{number}"] for number in (1, 2, 3, 4)]
        assert line["accuracy"] == pytest.approx(np.mean(quarters), abs=1e-9)
        assert 0 <= min(quarters) <= max(quarters) <= 1


def test_a_resumed_run_is_the_undisturbed_one(trained, tmp_path, capsys):
    for count in (3, 6, 6):
        assert program.main(program.flags(tmp_path, "train_classifier", *TINY, duration(count))) == 0
    assert "already at step 6 of 6" in capsys.readouterr().out
    timeless = lambda line: {key: value for key, value in line.items() if key not in program.RATES}
    final = lambda workdir: [timeless(line) for line in lines(workdir) if line["step"] == 6]
    assert len(final(trained)) == 2
    assert final(tmp_path) == final(trained)


def test_the_score_network_is_trained_beside_it(trained, tmp_path):
    """In either order, and the classifier's settings are no matter to it."""
    arguments = (*TINY, "--config.classifier.channel_multiplier=2")
    for mode in ("train", "train_classifier"):
        assert program.main(program.flags(tmp_path, mode, *arguments, steps(1), duration(1))) == 0
    assert program.main(program.flags(tmp_path, "train", *TINY, steps(2), duration(2))) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--config.classifier.channel_multiplier=2",), "is of another config: model.channel_multiplier is 1"),
        (("--config.classifier.learning_rate=0.1",), "classifier is of another config: model.learning_rate is 0.003"),
        (("--config.classifier.classes=7",), "classifier.classes must be the data's 10, not 7"),
        (("--config.classifier.noise_condition=log_sigm",), "did you mean 'log_sigma'"),
        (("--config.classifier.noise_condition=step",), "classifier: noise_condition 'step' needs a process"),
        (("--config.classifier.chanels=7",), "unknown key classifier.chanels"),
    ],
)
def test_what_it_refuses(trained, refuse, changes, message):
    assert message in refuse(program.flags(trained, "train_classifier", *TINY, duration(6), *changes), trained)


def over(mesh_shape):
    """The experiment on a mesh of devices that are not here."""
    built = program.experiment(Path("unused"), *TINY)
    return dataclasses.replace(built, mesh=AbstractMesh(mesh_shape, AXES))


def test_its_own_parameters_are_laid_out():
    """Not those of the score network: almost all of their values are in kernels large enough to be split in four."""
    layout = train_classifier.own_experiment(over((1, 1, 4, 1))).layout
    assert set(layout.placed) == set(Classifier(over((1, 1, 4, 1)).classifier.network, (8, 8, 1)).parameters())
    total = sum(4 * math.prod(each.shape) for each in layout.placed.values())
    assert layout.bytes_per_device() < 0.5 * total


def test_parts_of_its_batch_are_split_over_the_mesh():
    """16 in 4 parts of 4 samples each on 8 devices, where the score network's batch would do."""
    settings = dataclasses.replace(over((1, 8, 1, 1)).training, batch_size=64, accumulate=4)
    with pytest.raises(UserError, match=r"config: classifier: batch_size/training.accumulate=4 is not divisible by"):
        train_classifier.check(dataclasses.replace(over((1, 8, 1, 1)), training=settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--config.classifier.name=adm",), "classifier.classes must be the data's 10, not 1000"),
        (("--config.classifier.name=adm", "--config.classifier.classes=10"), "classifier: adm: attention_resolutions"),
        (("--config.sde.name=cld", "--config.objective.name=hybrid"), "train_classifier is for affine processes"),
        (
            (*TINY, "--config.training.keep_every=7 steps", "--config.training.save_every=5 steps"),
            "classifier: training.keep_every='7 steps' is 7 steps, no multiple of the 5 of save_every",
        ),
        (
            (*TINY, "--config.training.batch_size=24", "--config.training.accumulate=3"),
            "classifier: batch_size=16 is not divisible into the 3 parts of accumulate",
        ),
        (
            (*TINY, duration(6), "--config.profile.steps=7,8"),
            "classifier: profile.steps=7,8 begins after the last of 6 steps",
        ),
    ],
)
def test_it_refuses_before_the_workdir_is_made(tmp_path, refuse, changes, message):
    assert message in refuse(program.flags(tmp_path / "run", "train_classifier", *changes), tmp_path)
