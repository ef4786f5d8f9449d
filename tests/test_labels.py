"""A network with classes from training to report: what is scored and coded given labels."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from score_sde.data import SOURCES
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
