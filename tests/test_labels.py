"""A network with classes from training to report: what is scored and coded given labels."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from score_sde import build
from score_sde.data import SOURCES
from score_sde.likelihood import decode, encode, slerp
from tests import program

LABELLED = (
    *program.FINISHED,
    "--config.model.classes=10",
    "--config.training.label_drop=0.3",
    "--config.likelihood.batch_size=16",
    "--config.likelihood.noise_images=2",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a finished training. Not to be changed: copy it."""

    def make(path):
        assert program.main(program.flags(path, "train", *LABELLED)) == 0

    return program.shared(tmp_path_factory, "labelled", make)


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def test_split():
    return SOURCES["digits"]().split("test").arrays


def farthest(one, other):
    """The largest difference within each image."""
    return np.abs(one - other).max(axis=(1, 2, 3))


def run(workdir, mode, *overrides):
    assert program.main(program.flags(workdir, mode, *LABELLED, *overrides)) == 0


class TestLikelihood:
    def score(self, workdir, *overrides):
        run(workdir, "likelihood", *overrides)
        figures = json.loads((workdir / "reports" / "likelihood.json").read_text())
        return figures, dict(np.load(workdir / "reports" / "likelihood.npz"))

    def test_images_of_a_split_are_scored_given_their_labels(self, workdir, capsys):
        figures, _ = self.score(workdir)
        assert figures["conditional"] is True
        assert "bits/dim on the test split given its labels" in capsys.readouterr().out
        run(workdir, "evaluate")
        out = capsys.readouterr().out
        assert "bits/dim on the test split given its labels" in out
        assert "pure noise without a label" in out
        assert json.loads((workdir / "reports" / "summary.json").read_text())["likelihood"]["conditional"] is True
        page = (workdir / "reports" / "report.html").read_text()
        for words in ("the test split given its labels", "p(image | its label)", "pure noise without a label"):
            assert words in page

    def test_images_of_a_folder_without(self, workdir, tmp_path, test_split, capsys):
        """The same images by the same draws, in both ways: their figures differ, those of noise do not."""
        _, labelled = self.score(workdir)
        capsys.readouterr()
        (tmp_path / "mine").mkdir()
        for number, image in enumerate(test_split["image"][:16]):
            grey = np.round(image[..., 0].astype(float) * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "mine" / f"digit_{number:02d}.png")
        figures, arrays = self.score(workdir, f"--config.likelihood.data={tmp_path / 'mine'}")
        assert figures["conditional"] is False
        assert "label" not in capsys.readouterr().out
        assert np.all(labelled["test_log_prob"][:, :16] != arrays["folder_log_prob"])
        np.testing.assert_array_equal(labelled["noise_log_prob"], arrays["noise_log_prob"])


class TestCoding:
    """Against the flow itself, asked with the labels that the images should have been coded with."""

    TIGHT = {"rtol": 1e-5, "atol": 1e-5}

    def code(self, workdir, task, count, *overrides):
        options = [f"--config.likelihood.{name}={value}" for name, value in self.TIGHT.items()]
        sizes = (f"--config.sampling.num_samples={count}", "--config.sampling.batch_size=4")
        run(workdir, "sample", f"--config.sampling.task={task}", *sizes, *options, *overrides)
        return dict(np.load(workdir / "samples" / f"{task}.npz"))

    @pytest.fixture
    def flow(self, workdir):
        """(encode, decode) of arrays given labels."""
        pairs = dict(flag.removeprefix("--config.").split("=", 1) for flag in LABELLED)
        experiment, _, params = build.build(build.load_config(str(program.CONFIG)), pairs, workdir, "").restore()
        denoiser = experiment.denoiser(params)

        def given(function):
            ask = jax.jit(lambda x, label: function(denoiser, x, condition={"label": label}, **self.TIGHT).x)

            def call(x, label):
                with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                    return np.asarray(ask(jnp.asarray(x), jnp.asarray(label, jnp.int32)))

            return call

        return given(encode), given(decode)

    def test_reconstructions_are_given_the_images_labels(self, workdir, flow, test_split):
        arrays = self.code(workdir, "reconstruct", 6)
        own = test_split["label"][:6]
        np.testing.assert_array_equal(arrays["label"], own)
        assert arrays["error"].max() < 3e-2
        there, _ = flow
        distance = lambda label: farthest(arrays["latent"], there(arrays["x"], label))
        for other in ((own + 1) % 10, np.full(6, -1)):
            assert np.all(5 * distance(own) < distance(other))

    def test_interpolations_are_given_the_nearer_images_label(self, workdir, flow, test_split):
        steps, own = 3, test_split["label"][:8].reshape(4, 2)
        arrays = self.code(workdir, "interpolate", 4, f"--config.sampling.interpolation_steps={steps}")
        np.testing.assert_array_equal(arrays["label"], own)
        assert np.all(own[:, 0] != own[:, 1])
        for at, end in ((0, 0), (-1, 1)):  # reconstructions
            level = (arrays["samples"][:, at] + 1) * 8.5
            assert (np.abs(level - (arrays["original"][:, end] + 0.5)) < 0.5 + 0.3).all()
        _, back = flow
        one, other = (jnp.asarray(arrays["latent"][:, n]) for n in (0, 1))
        for at, (share, end) in enumerate([(0.0, 0), (0.5, 0), (1.0, 1)]):
            latent, made = slerp(one, other, jnp.full(4, share)), arrays["samples"][:, at]
            near, far = (farthest(made, back(latent, own[:, n])) for n in (end, 1 - end))
            assert np.all(2 * near < far)
