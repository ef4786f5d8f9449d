"""--mode=likelihood and the tasks of --mode=sample that encode, as a user runs them, at tiny settings."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from score_sde.data import SOURCES
from score_sde.data.folder import read_folder
from score_sde.errors import UserError
from score_sde.experiment import base, batches
from score_sde.experiment.scoring import spread
from tests import program

SMALL = ("--config.likelihood.batch_size=16", "--config.likelihood.noise_images=2")
FLOW = (
    "--config.likelihood.dequantisation=variational",
    "--config.likelihood.dequantiser_steps=3",
    "--config.likelihood.dequantiser_channels=4",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return program.finished_run(tmp_path_factory)


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def pictures(folder, count=6):
    """Test digits as a user's PNG files, and their levels."""
    folder.mkdir()
    images = SOURCES["digits"]().split("test").arrays["image"][:count]
    for number, image in enumerate(images):
        grey = np.round(image[..., 0].astype(float) * 255 / 16).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"digit_{number}.png")
    return images


def likelihood(workdir, *overrides):
    """Runs the mode: its figures and arrays."""
    assert program.main(program.flags(workdir, "likelihood", *program.FINISHED, *SMALL, *overrides)) == 0
    figures = json.loads((workdir / "reports" / "likelihood.json").read_text())
    return figures, dict(np.load(workdir / "reports" / "likelihood.npz"))


def check_figures(figures, arrays, name):
    """Every figure is what its equation makes of the per-image arrays: 64 values of 17 levels in [−1, 1]."""
    nats = 64 * np.log(2)
    bits, data = arrays[f"{name}_bits_per_dim"].astype(np.float64), figures[name]
    made = -(arrays[f"{name}_log_prob"] - arrays[f"{name}_log_q"]) / nats + np.log2(17 / 2)
    np.testing.assert_allclose(bits, made, rtol=1e-5)
    per_image = bits.mean(axis=0)
    assert data["bits_per_dim"] == pytest.approx(per_image.mean(), rel=1e-9)
    assert data["standard_error"] == pytest.approx(per_image.std(ddof=1) / np.sqrt(len(per_image)), rel=1e-9)
    terms = [arrays[f"{name}_{term}"].astype(np.float64).mean() for term in ("prior", "diffusion", "reconstruction")]
    assert data["bound"]["bits_per_dim"] == pytest.approx(sum(terms), rel=1e-6)
    assert data["bound"]["standard_error"] > 0


class TestSplits:
    def test_figures_of_the_test_split(self, finished):
        figures = json.loads((finished / "reports" / "likelihood.json").read_text())
        arrays = dict(np.load(finished / "reports" / "likelihood.npz"))
        assert arrays["test_bits_per_dim"].shape == (1, 500)
        assert list(arrays["test_id"]) == [str(number) for number in range(500)]
        assert (arrays["test_log_q"] == 0).all()
        check_figures(figures, arrays, "test")
        # The decoder's entropy, at σ̄ of vp at t_min = 1e-3, and the width of a level.
        sigma2 = np.expm1(0.1e-3 + 19.9e-6 / 2)
        expected = 0.5 * (np.log2(2 * np.pi * sigma2) + 1 / np.log(2)) + np.log2(17 / 2)
        assert figures["test"]["bound"]["reconstruction"] == pytest.approx(expected, rel=1e-3)
        assert figures["test"]["importance_weighted"] is None
        assert figures["conditional"] is False
        assert figures["seconds"] > 0

    def test_the_first_images_alone(self, finished, workdir, capsys):
        """Twenty fill a batch of 16 and a part of another, and are scored as among all."""
        every = np.load(finished / "reports" / "likelihood.npz")["test_bits_per_dim"]
        figures, arrays = likelihood(workdir, "--config.likelihood.images=20")
        assert list(arrays["test_id"]) == [str(number) for number in range(20)]
        np.testing.assert_allclose(arrays["test_bits_per_dim"], every[:, :20], atol=1e-3)
        check_figures(figures, arrays, "test")
        assert "bits/dim on the first 20 of the test split" in capsys.readouterr().out

    def test_draws_of_the_bound_share_out_its_times(self, finished, workdir):
        """The times of one image's 16 draws are spread evenly: what they leave is less than a quarter, 1/√16."""
        many = json.loads((finished / "reports" / "likelihood.json").read_text())
        assert many["bound_draws"] == 16
        one, _ = likelihood(workdir, "--config.likelihood.bound_draws=1")
        many, one = many["test"]["bound"], one["test"]["bound"]
        assert many["standard_error"] < one["standard_error"] / 5
        assert abs(many["bits_per_dim"] - one["bits_per_dim"]) < 5 * one["standard_error"]

    def test_report_shows_the_bound(self, finished):
        page = (finished / "reports" / "report.html").read_text()
        for word in ("the test split", "evidence bound", "reconstruction", "rademacher"):
            assert word in page


@pytest.mark.parametrize("size", [1, 2, 16, 100, 128])
def test_times_of_a_batch_that_is_not_full_are_spread(size):
    """The first n of `size` places leave no gap of more than 3/n."""
    order = spread(size)
    assert sorted(order) == list(range(size))
    for n in range(1, size + 1):
        gaps = np.diff(np.concatenate([sorted(order[:n] / size), [order[:n].min() / size + 1]]))
        assert gaps.max() <= 3 / n


class TestFolder:
    def test_images_draws_traces_and_flow(self, workdir, tmp_path, capsys):
        """Three draws each, through a dequantiser that is trained first and only once."""
        pictures(tmp_path / "mine")
        options = (f"--config.likelihood.data={tmp_path / 'mine'}", "--config.likelihood.repeats=3", *FLOW)
        figures, arrays = likelihood(workdir, *options)
        assert arrays["folder_bits_per_dim"].shape == (3, 6)
        assert list(arrays["folder_id"]) == [f"digit_{number}.png" for number in range(6)]
        assert (arrays["folder_log_q"] != 0).all()
        check_figures(figures, arrays, "folder")
        bits = arrays["folder_bits_per_dim"].astype(np.float64)
        spread = np.sqrt(bits.var(axis=0, ddof=1).mean())
        assert figures["folder"]["draw_deviation"] == pytest.approx(spread, rel=1e-6)
        nats = -(bits - np.log2(17 / 2)) * 64 * np.log(2)
        together = np.log(np.mean(np.exp(nats - nats.max(axis=0)), axis=0)) + nats.max(axis=0)
        weighted = -together / (64 * np.log(2)) + np.log2(17 / 2)
        reported = figures["folder"]["importance_weighted"]
        assert reported["bits_per_dim"] == pytest.approx(weighted.mean(), rel=1e-5)
        assert reported["optimistic"] is True
        assert reported["bits_per_dim"] <= figures["folder"]["bits_per_dim"]
        capsys.readouterr()
        likelihood(workdir, *options, "--config.likelihood.bound_draws=0")
        out = capsys.readouterr().out
        assert "the dequantiser is trained" in out
        assert json.loads((workdir / "reports" / "likelihood.json").read_text())["folder"]["bound"] is None

    def test_goes_on_after_a_signal(self, workdir, tmp_path, monkeypatch):
        """Stopped after one batch of three: the second run computes the others, and says what one run would."""
        images = pictures(tmp_path / "mine", 40)
        options = (f"--config.likelihood.data={tmp_path / 'mine'}", "--config.likelihood.trace=gaussian")
        whole = tmp_path / "whole"
        shutil.copytree(workdir, whole)
        expected = likelihood(whole, *options)[1]
        computed, write = [], batches.write_arrays

        def interrupted(path, arrays):
            write(path, arrays)
            computed.append(path.name)
            if len(computed) == 1:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(batches, "write_arrays", interrupted)
        arguments = program.flags(workdir, "likelihood", *program.FINISHED, *SMALL, *options)
        assert program.main(arguments) == 75
        _, arrays = likelihood(workdir, *options)
        assert computed == ["000000.npz", "000001.npz", "000002.npz", "000000.npz"]  # the last one is of noise
        assert len(images) == 40
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value)

    def test_dequantiser_goes_on_after_a_signal(self, workdir, tmp_path, monkeypatch):
        """Stopped in the middle and gone on with, it is the one that was never stopped."""
        pictures(tmp_path / "mine")
        options = (f"--config.likelihood.data={tmp_path / 'mine'}", "--config.likelihood.bound_draws=0", *FLOW)
        whole = tmp_path / "whole"
        shutil.copytree(workdir, whole)
        likelihood(whole, *options)
        prefetched, taken = base.Prefetched, []

        class Stopping(prefetched):
            def __next__(self):
                taken.append(1)
                if len(taken) == 2:
                    import os
                    import signal

                    os.kill(os.getpid(), signal.SIGTERM)
                return super().__next__()

        monkeypatch.setattr(base, "Prefetched", Stopping)
        assert program.main(program.flags(workdir, "likelihood", *program.FINISHED, *SMALL, *options)) == 75
        assert (workdir / "reports" / ".dequantiser.npz").exists()
        likelihood(workdir, *options)
        assert len(taken) == 3
        assert not (workdir / "reports" / ".dequantiser.npz").exists()
        one, two = (dict(np.load(path / "reports" / "dequantiser.npz")) for path in (whole, workdir))
        assert one.keys() == two.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(two[key], value)


def test_levels_of_a_picture_are_those_it_was_made_of(tmp_path):
    images = pictures(tmp_path / "mine")
    read, names = read_folder(tmp_path / "mine", (8, 8, 1), 17)
    np.testing.assert_array_equal(read, images)
    assert names[0] == "digit_0.png"
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "colour").mkdir()
    Image.fromarray(colour).save(tmp_path / "colour" / "a.PNG")
    Image.fromarray(np.dstack([colour, np.full((8, 8), 255, np.uint8)])).save(tmp_path / "colour" / "opaque.png")
    np.testing.assert_array_equal(read_folder(tmp_path / "colour", (8, 8, 3), 256)[0], np.stack([colour, colour]))


def _damaged(folder):
    (folder / "b.jpg").write_bytes(b"\xff\xd8 not an image")


def _cut_short(folder):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))
    noise.save(folder / "b.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:80])


# What is done to a folder with one good image, and words of the answer.
FOLDERS = {
    "missing": (shutil.rmtree, "is no folder"),
    "empty": (lambda folder: (folder / "a.png").rename(folder / "notes.txt"), "no image in"),
    "size": (lambda folder: Image.new("L", (9, 8)).save(folder / "b.png"), "b.png is 9x8 pixels, the model's .* 8x8"),
    "damaged": (_damaged, "b.jpg: it is no PNG, JPEG, WEBP, BMP or GIF image"),
    "cut short": (_cut_short, "b.png: it is damaged"),
    "other format": (
        lambda folder: Image.new("L", (8, 8)).save(folder / "b.png", format="TIFF"),
        "b.png: it is no PNG, JPEG, WEBP, BMP or GIF image",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_bad_folder(name, tmp_path):
    spoil, words = FOLDERS[name]
    (tmp_path / "mine").mkdir()
    Image.new("L", (8, 8), 100).save(tmp_path / "mine" / "a.png")
    spoil(tmp_path / "mine")
    with pytest.raises(UserError, match=words):
        read_folder(tmp_path / "mine", (8, 8, 1), 17)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.likelihood.data=no/such/folder"], "likelihood.data: no/such/folder is no folder"),
        (["--config.likelihood.trace=rademaker"], "did you mean 'rademacher'"),
        (["--config.likelihood.trace=exact", "--config.likelihood.probes=2"], "'exact' draws no probes"),
        (["--config.likelihood.dequantisation=flow"], "unknown dequantisation 'flow'"),
        (["--config.likelihood.images=-1"], "images must lie in [0, 1e6], not -1"),
        (["--config.likelihood.bound_draws=-1"], "bound_draws must lie in [0, 1e6], not -1"),
        (["--config.sampling.task=reconstrct"], "did you mean 'reconstruct'"),
        (["--config.sampling.interpolation_steps=1"], "interpolation_steps must lie in [2, 1000], not 1"),
    ],
)
@pytest.mark.parametrize("name", ["likelihood", "all"])
def test_bad_settings(name, overrides, words, finished, tmp_path, capsys):
    """One line, and nothing changed."""
    before = program.snapshot(finished)
    assert program.main(program.flags(finished, name, *program.FINISHED, *overrides)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert program.snapshot(finished) == before


class TestCoding:
    TIGHT = ("--config.likelihood.rtol=1e-4", "--config.likelihood.atol=1e-4", "--config.sampling.batch_size=4")

    def sample(self, workdir, task, number):
        options = (f"--config.sampling.task={task}", f"--config.sampling.num_samples={number}", *self.TIGHT)
        assert program.main(program.flags(workdir, "sample", *program.FINISHED, *options)) == 0
        assert (workdir / "samples" / f"{task}.png").read_bytes().startswith(b"\x89PNG")
        return dict(np.load(workdir / "samples" / f"{task}.npz"))

    def test_reconstruct(self, workdir, capsys):
        arrays = self.sample(workdir, "reconstruct", 6)
        test = SOURCES["digits"]().split("test").arrays["image"][:6]
        np.testing.assert_array_equal(arrays["original"], test)
        assert arrays["error"].shape == arrays["evaluations"].shape == (6,)
        # Local errors of 1e-4 over tens of steps, widened on the way back.
        assert arrays["error"].max() < 3e-2
        assert np.abs(arrays["samples"] - arrays["x"]).max() == pytest.approx(arrays["error"].max(), rel=1e-4)
        edge = np.abs((arrays["x"] + 1) * 8.5 - np.round((arrays["x"] + 1) * 8.5)) < 0.3
        assert ((arrays["image"] == test) | edge).all()
        capsys.readouterr()
        kept = program.snapshot(workdir / "samples" / "reconstruct.npz")
        self.sample(workdir, "reconstruct", 6)
        assert "reconstruct is done" in capsys.readouterr().out
        assert program.snapshot(workdir / "samples" / "reconstruct.npz") == kept

    def test_interpolate(self, workdir):
        steps = 3
        options = (f"--config.sampling.interpolation_steps={steps}",)
        self.TIGHT = (*self.TIGHT, *options)
        arrays = self.sample(workdir, "interpolate", 2)
        test = SOURCES["digits"]().split("test").arrays["image"][:4].reshape(2, 2, 8, 8, 1)
        np.testing.assert_array_equal(arrays["original"], test)
        assert arrays["samples"].shape == (2, steps, 8, 8, 1)
        np.testing.assert_array_equal(arrays["share"], [0, 0.5, 1])
        # The ends are the two images.
        for at, end in ((0, 0), (-1, 1)):
            level = (arrays["samples"][:, at] + 1) * 8.5
            assert (np.abs(level - (test[:, end] + 0.5)) < 0.5 + 0.3).all()
