"""Eight devices as 2 × 2 × 2 of data, fsdp and tensor against one: a transformer, by Muon, with averages by length.

And the modes beside training, by two processes against one.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import program
from tests.multi_device import jobs
from tests.multi_device.test_devices import close, losses, run_all

CONFIG = """
from ml_collections import ConfigDict
from configs import digits

def get_config():
    config = digits.get_config()
    config.unlock()
    config.model = ConfigDict({"name": "dit", "depth": 2, "width": 128, "heads": 4, "patch": 2, "classes": 10})
    config.lock()
    return config
"""
TRAINING = [flag for flag in program.TINY if not flag.startswith("--config.model.")]
MODEL = (
    "--config.optimiser.name=muon",
    "--config.training.ema_half_lives=",
    "--config.training.ema_lengths=0.05,0.1",
    "--config.training.ema_snapshot_every=2 steps",
    "--config.training.duration=10 steps",
    "--config.training.log_every=1 steps",
)
MESH = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
CHOSEN = "--config.evaluation.ema_length=0.08"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """one, eight: trained on so many devices, and the average of another length made of their snapshots."""

    def make(path: Path) -> None:
        path.mkdir()
        config = path / "transformer.py"
        config.write_text(CONFIG)
        modes = lambda name, *mesh: [
            program.flags(path / name, "train", *TRAINING, *MODEL, *mesh, config=config),
            program.flags(path / name, "ema", *TRAINING, *MODEL, *mesh, "--ema.length=0.08", config=config),
            program.flags(path / name, "export", *TRAINING, *MODEL, *mesh, CHOSEN, config=config),
        ]
        for arguments in modes("one"):
            assert program.main(arguments) == 0
        run_all(modes("eight", *MESH), 8)

    return program.shared(tmp_path_factory, "layouts", make)


def test_same_losses(runs):
    one = losses(runs / "one")
    assert list(one) == list(range(1, 11))
    close(one, losses(runs / "eight"))


def test_same_average_of_another_length(runs):
    """Muon's updates are of size 1 whatever their gradient's, so that rounding grows: to 1e-4 of the largest value."""
    one, eight = (load_file(runs / name / "export" / "10.safetensors") for name in ("one", "eight"))
    assert set(one) == set(eight)
    largest = max(np.abs(each).max() for each in one.values())
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=1e-4 * largest)


SCORED = (
    "--config.likelihood.batch_size=4",
    "--config.compare.samplers=ddim",
    "--config.compare.nfe=4",
    "--config.compare.seeds=1",
    "--config.compare.num_samples=16",
    "--config.compare.batch_size=16",
    "--config.evaluation.metrics=frechet",
    "--config.evaluation.extractors=pixels,digits_cnn",
    "--config.sampling.samplers=ddim",
)


def test_other_modes_by_two_processes(tmp_path_factory, tmp_path):
    """Bits/dim of each image, and the table of a comparison, from the checkpoint of one process."""
    images = tmp_path / "images"
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir in (one, two):
        shutil.copytree(program.finished_run(tmp_path_factory), workdir)
    _write_images(images, 8)
    modes = lambda workdir: [
        program.flags(workdir, mode, *program.FINISHED, *SCORED, f"--config.likelihood.data={images}")
        for mode in ("likelihood", "compare", "evaluate")
    ]
    for arguments in modes(one):
        assert program.main(arguments) == 0
    jobs.run(tmp_path / "logs", 2, 2, modes(two))
    figures = [np.load(workdir / "reports" / "likelihood.npz") for workdir in (one, two)]
    assert figures[0]["folder_bits_per_dim"].size == 8
    np.testing.assert_allclose(figures[1]["folder_bits_per_dim"], figures[0]["folder_bits_per_dim"], rtol=1e-4)
    tables = [json.loads((workdir / "reports" / "compare" / "compare.json").read_text()) for workdir in (one, two)]
    for row, other in zip(*(table["cells"] for table in tables), strict=True):
        assert row["sampler"] == other["sampler"]
        assert other["scores"]["frechet"]["mean"] == pytest.approx(row["scores"]["frechet"]["mean"], 1e-3)
    scores = [json.loads((workdir / "reports" / "evaluation.json").read_text()) for workdir in (one, two)]
    assert scores[0]["step"] == scores[1]["step"]
    for key in ("frechet_pixels", "frechet_digits_cnn"):
        for row in ("real", "noise", "ddim"):
            one, two = (each["metrics"][key][row]["value"] for each in scores)
            assert two == pytest.approx(one, rel=1e-3), (key, row)


def _write_images(folder: Path, count: int) -> None:
    """Test digits as PNG files, as the mode takes them."""
    from score_sde.data import SOURCES, whole
    from score_sde.experiment.pictures import write_png

    folder.mkdir()
    for number, image in enumerate(whole(SOURCES["digits"]().split("test"), "image", count)):
        write_png(folder / f"{number}.png", np.round(image * (255 / 16)).astype(np.uint8))
