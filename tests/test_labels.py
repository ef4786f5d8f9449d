"""A network with classes from training to report: what is scored, sampled and coded given labels."""

import dataclasses
import json
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from score_sde import build
from score_sde.data import SOURCES
from score_sde.errors import UserError
from score_sde.experiment import compare, sample
from score_sde.experiment.label import Label
from score_sde.likelihood import decode, encode, slerp
from score_sde.schema import Text, convert
from score_sde.training.interrupt import StopRequest
from tests import program

LABELLED = (
    *program.FINISHED,
    "--config.model.classes=10",
    "--config.training.label_drop=0.3",
    "--config.likelihood.batch_size=16",
    "--config.likelihood.noise_images=2",
)
ALL = ("--config.sampling.label=all",)


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
def split_for_tests():
    return SOURCES["digits"]().split("test").arrays


def farthest(one, other):
    """The largest difference within each image."""
    return np.abs(one - other).max(axis=(1, 2, 3))


def run(workdir, mode, *overrides):
    assert program.main(program.flags(workdir, mode, *LABELLED, *overrides)) == 0


def experiment(workdir, *overrides):
    pairs = dict(flag.removeprefix("--config.").split("=", 1) for flag in (*LABELLED, *overrides))
    return build.build(build.load_config(str(program.CONFIG)), pairs, workdir, "")


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

    def test_images_of_a_folder_without(self, workdir, tmp_path, split_for_tests, capsys):
        """The same images by the same draws, in both ways: their figures differ, those of noise do not."""
        _, labelled = self.score(workdir)
        capsys.readouterr()
        (tmp_path / "mine").mkdir()
        for number, image in enumerate(split_for_tests["image"][:16]):
            grey = np.round(image[..., 0].astype(float) * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "mine" / f"digit_{number:02d}.png")
        figures, arrays = self.score(workdir, f"--config.likelihood.data={tmp_path / 'mine'}")
        assert figures["conditional"] is False
        assert "label" not in capsys.readouterr().out
        assert np.all(labelled["test_log_prob"][:, :16] != arrays["folder_log_prob"])
        np.testing.assert_array_equal(labelled["noise_log_prob"], arrays["noise_log_prob"])


class TestSampling:
    SAMPLERS = ("pc", "ode", "ddim")

    def sample(self, workdir, *overrides):
        run(workdir, "sample", *overrides)
        return {name: dict(np.load(workdir / "samples" / f"{name}.npz")) for name in self.SAMPLERS}

    def test_a_sample_is_a_function_of_its_index_and_label(self, workdir, capsys):
        """Each sample of one label is that of the same index and label among those of all."""
        every, one, none = (self.sample(workdir, *label) for label in (ALL, ("--config.sampling.label=3",), ()))
        index = np.arange(16)
        for name in self.SAMPLERS:
            np.testing.assert_array_equal(every[name]["label"], index % 10)
            np.testing.assert_array_equal(one[name]["label"], np.full(16, 3))
            np.testing.assert_array_equal(none[name]["label"], np.full(16, -1))
            # Each choice of labels is a program of its own, equal but for rounding.
            apart, same = farthest(every[name]["samples"], one[name]["samples"]), index % 10 == 3
            assert 10 * apart[same].max() < apart[~same].min()
            assert 10 * apart[same].max() < farthest(none[name]["samples"], one[name]["samples"]).min()
            labels = [json.loads(str(each[name]["record"]))["label"] for each in (every, one, none)]
            assert labels == ["all", "3", "none"]
        capsys.readouterr()
        self.sample(workdir)
        assert capsys.readouterr().out.count("is done") == 3

    def test_the_label_does_not_change_with_the_batch(self, workdir):
        sizes = ("--config.sampling.num_samples=24", "--config.sampling.batch_size=8")
        few, many = self.sample(workdir, *ALL), self.sample(workdir, *ALL, *sizes)
        for name in self.SAMPLERS:
            np.testing.assert_array_equal(many[name]["label"], np.arange(24) % 10)
            np.testing.assert_allclose(few[name]["samples"], many[name]["samples"][:16], atol=1e-4)

    def test_the_report_says_the_label(self, workdir):
        run(workdir, "evaluate", *ALL)
        rows = json.loads((workdir / "reports" / "summary.json").read_text())["rows"]
        assert [row["settings"]["label"] for row in rows if "settings" in row] == ["all"] * 3
        assert "label all" in (workdir / "reports" / "report.html").read_text()

    @pytest.mark.parametrize(("drop", "said"), [(0.0, True), (0.1, False)])
    def test_samples_without_labels_that_were_always_given(self, drop, said, workdir, capsys):
        built = experiment(workdir)
        built = dataclasses.replace(built, samplers={}, training=dataclasses.replace(built.training, label_drop=drop))
        sample.generate(built, 0, {}, StopRequest())
        assert ("set sampling.label to all or a number" in capsys.readouterr().out) == said
        labelled = dataclasses.replace(built, sampling=dataclasses.replace(built.sampling, label=Label("all")))
        sample.generate(labelled, 0, {}, StopRequest())
        assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), ("3", "3"), (Text("3"), "3"), ("all", "all"), (Text("none"), "none")]
)
def test_what_a_label_is(value, text):
    assert convert(value, Label) == Label(text)


@pytest.mark.parametrize("value", [-1, "-1", 1.0, "1e1", "every", None, True, "", "٣", "9" * 5000])
def test_what_is_no_label(value):
    with pytest.raises(UserError, match="must be the number of a label, 'all' or 'none', not "):
        convert(value, Label)


@pytest.mark.parametrize(
    ("classes", "label", "words"),
    [
        (0, "3", "sampling: label=3 needs a network with classes"),
        (0, "all", "sampling: label=all needs a network with classes"),
        (10, "10", "sampling: label must lie in [0, 9], not 10"),
        (10, "-1", "sampling.label: must be the number of a label, 'all' or 'none', not '-1'"),
    ],
)
def test_a_label_that_the_network_does_not_take_is_refused(classes, label, words, tmp_path, capsys):
    overrides = (f"--config.model.classes={classes}", f"--config.sampling.label={label}")
    assert program.main(program.flags(tmp_path / "new", "train", *program.TINY, *overrides)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


class TestCompare:
    """A cell is of the label that its command samples with."""

    SMALL = (
        *("--config.compare.samplers=ddim", "--config.compare.nfe=2", "--config.compare.seeds=1"),
        *(
            "--config.compare.num_samples=16",
            "--config.compare.batch_size=16",
            "--config.evaluation.metrics=frechet",
        ),
    )

    def cells(self, workdir):
        folder = workdir / "reports" / "compare" / "cells"
        return [arrays["preview"] for arrays in map(np.load, sorted(folder.glob("*.npz"))) if "preview" in arrays]

    def test_the_label_is_that_of_the_config(self, workdir, capsys):
        run(workdir, "compare", *self.SMALL, *ALL)
        (preview,) = self.cells(workdir)
        report = json.loads((workdir / "reports" / "compare" / "compare.json").read_text())
        _, _, *command = shlex.split(report["cells"][0]["command"])
        assert program.main(command) == 0
        arrays = np.load(workdir / "samples" / "ddim_2.npz")
        np.testing.assert_array_equal(arrays["label"], np.arange(16) % 10)
        np.testing.assert_allclose(arrays["samples"], preview, atol=1e-5)
        assert "compare: without labels" not in capsys.readouterr().out
        built = experiment(workdir, *self.SMALL)
        untrained = dataclasses.replace(built, training=dataclasses.replace(built.training, label_drop=0.0))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            compare.run(untrained, StopRequest())
        assert "compare: without labels" in capsys.readouterr().out
        first, second = self.cells(workdir)
        assert np.all(farthest(first, second) > 1e-3)


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
        restored, _, params = experiment(workdir).restore()
        denoiser = restored.denoiser(params)

        def given(function):
            ask = jax.jit(lambda x, label: function(denoiser, x, condition={"label": label}, **self.TIGHT).x)

            def call(x, label):
                with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                    return np.asarray(ask(jnp.asarray(x), jnp.asarray(label, jnp.int32)))

            return call

        return given(encode), given(decode)

    def test_reconstructions_are_given_the_images_labels(self, workdir, flow, split_for_tests):
        arrays = self.code(workdir, "reconstruct", 6)
        own = split_for_tests["label"][:6]
        np.testing.assert_array_equal(arrays["label"], own)
        assert arrays["error"].max() < 3e-2
        there, _ = flow
        distance = lambda label: farthest(arrays["latent"], there(arrays["x"], label))
        for other in ((own + 1) % 10, np.full(6, -1)):
            assert np.all(5 * distance(own) < distance(other))

    def test_interpolations_are_given_the_nearer_images_label(self, workdir, flow, split_for_tests):
        steps, own = 3, split_for_tests["label"][:8].reshape(4, 2)
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
