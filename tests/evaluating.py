"""What the tests of --mode=evaluate share: a small trained workdir, and a run in a copy of it."""

import json
import shutil

import pytest

from tests import program

SMALL = (
    *program.TINY,
    "--config.training.duration=8 steps",
    "--config.training.save_every=4 steps",
    "--config.training.sample_every=1000 steps",
    "--config.training.keep_checkpoints=5",
    "--config.sampling.samplers=ddim",
    "--config.sampling.num_samples=40",
    "--config.sampling.batch_size=8",
    "--config.evaluation.metrics=frechet,kernel,recall,memorisation",
    "--config.evaluation.extractors=pixels",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Checkpoints at steps 4 and 8. Not to be changed."""

    def make(path):
        assert program.main(program.flags(path, "train", *SMALL)) == 0

    return program.shared(tmp_path_factory, "evaluated", make)


@pytest.fixture
def run(trained, tmp_path):
    """Runs evaluate in a copy of the trained workdir, with statistics of its own."""
    workdir = tmp_path / "w"
    shutil.copytree(trained, workdir)

    def call(*overrides, mode="evaluate", status=0):
        kept = f"--config.evaluation.statistics={tmp_path / 'statistics'}"
        assert program.main(program.flags(workdir, mode, *SMALL, kept, *overrides)) == status
        return workdir / "reports"

    return call


def read(path):
    return json.loads(path.read_text())
