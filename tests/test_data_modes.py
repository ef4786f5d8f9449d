"""Points, sounds and folders through main.py: trained on, sampled, scored; and what does not go together."""

import json
import math
import wave

import numpy as np
import pytest
from PIL import Image

from score_sde import build
from score_sde.data import Levels
from score_sde.experiment import pictures
from tests import program
from tests.sources import png, wav

TOYS, AUDIO = (program.ROOT / "configs" / name for name in ("toys.py", "audio.py"))
TINY = (
    "--config.training.batch_size=8",
    "--config.training.duration=2 steps",
    "--config.training.log_every=1 steps",
    "--config.sampling.num_samples=8",
    "--config.sampling.batch_size=8",
    "--config.likelihood.batch_size=8",
    "--config.likelihood.rtol=0.1",
    "--config.likelihood.atol=0.1",
    "--config.likelihood.noise_images=8",
)
POINTS = (*TINY, "--config.data.records=40", "--config.model.width=8", "--config.model.depth=1")
SOUND = (
    *TINY,
    "--config.data.length=64",
    "--config.model.channels=8",
    "--config.model.channel_multipliers=1,1",
    "--config.model.attention_levels=0",
    "--config.samplers.pc.steps=2",
    "--config.samplers.ddim.steps=2",
)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A finished run on points. Not to be changed."""
    path = tmp_path_factory.mktemp("points") / "run"
    assert program.main(program.flags(path, "all", *POINTS, config=TOYS)) == 0
    return path


class TestPoints:
    def test_samples_are_points_and_a_picture_of_them(self, points):
        for name in ("ode", "dpmpp_2m"):
            with np.load(points / "samples" / f"{name}.npz") as stored:
                assert stored["samples"].shape == stored["image"].shape == (8, 2)
                assert stored["image"].dtype == np.float32
                np.testing.assert_array_equal(stored["samples"], stored["image"])
            with Image.open(points / "samples" / f"{name}.png") as picture:
                assert picture.size == (pictures.POINT_PIXELS,) * 2
        assert list((points / "samples" / "training").glob("*.png")) == []  # sample_every is beyond the end

    def test_likelihood_is_of_the_density(self, points, capsys):
        figures = json.loads((points / "reports" / "likelihood.json").read_text())
        with np.load(points / "reports" / "likelihood.npz") as stored:
            log_prob = stored["test_log_prob"]
            np.testing.assert_allclose(stored["test_bits_per_dim"], -log_prob / (2 * math.log(2)), rtol=1e-5)
            assert (stored["test_log_q"] == 0).all()
        assert figures["uniform"] == 1  # bit/dim, over [−1, 1)
        assert program.main(program.flags(points, "evaluate", *POINTS, config=TOYS)) == 0
        nats = f"({-log_prob.mean():.3f} nats)"
        assert nats in capsys.readouterr().out

    def test_every_other_mode(self, points, tmp_path):
        for mode, *more in (
            ("sample", "--config.sampling.task=reconstruct"),
            ("sample", "--config.sampling.task=interpolate"),
            ("compare", "--config.compare.samplers=ddim", "--config.compare.nfe=5", "--config.compare.num_samples=8"),
        ):
            flags = (*POINTS, "--config.compare.seeds=1", "--config.compare.batch_size=8", *more)
            assert program.main(program.flags(points, mode, *flags, config=TOYS)) == 0, more

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("data.source=toys:two_moon", "did you mean 'two_moons'"),
            ("training.flip=True", "flip exchanges left and right of images, not of samples of shape (2,)"),
            ("training.augment=0.1", "is for images, not for samples of shape (2,)"),
            ("likelihood.dequantisation=variational", "is for data with levels"),
            ("likelihood.data=somewhere", "is no folder"),
            ("model.name=ncsnpp", "(2,)"),
        ],
    )
    def test_what_does_not_go_together(self, override, words, tmp_path, refuse):
        dropped = ("--config.model.",) if override.startswith("model.name") else ()
        flags = [flag for flag in POINTS if not flag.startswith(dropped or ("-none",))]
        if override.startswith("data.source"):
            flags = [flag for flag in flags if not flag.startswith("--config.data.")]
        arguments = program.flags(tmp_path / "run", "all", *flags, f"--config.{override}", config=TOYS)
        assert words in refuse(arguments, tmp_path, compiles=True)


@pytest.mark.parametrize("test", [None, np.zeros((4, 3))], ids=["missing", "of another shape"])
def test_arrays_for_testing_that_do_not_fit_are_told_before_anything_is_written(test, tmp_path, refuse):
    np.savez(tmp_path / "train.npz", np.zeros((9, 2)))
    if test is not None:
        np.savez(tmp_path / "test.npz", test)
    source = (f"--config.data.source=npz:{tmp_path / 'train.npz'}", f"--config.data.test={tmp_path / 'test.npz'}")
    kept = f"--config.evaluation.statistics={tmp_path / 'statistics'}"
    flags = program.flags(tmp_path / "run", "statistics", *TINY, *source, kept, config=TOYS)
    assert f"data: {tmp_path / 'test.npz'} " in refuse(flags, tmp_path)


class TestSounds:
    @pytest.fixture
    def folder(self, tmp_path):
        for n in range(3):
            sine = 2**14 * np.sin(np.arange(200) * (n + 1) / 9)[:, None]
            wav(tmp_path / "sounds" / f"{n}.wav", np.round(sine), rate=16000)
        return tmp_path / "sounds"

    def test_trained_sampled_and_scored(self, folder, tmp_path):
        flags = (*SOUND, f"--config.data.source=wav:{folder}")
        flags = [flag for flag in flags if not flag.startswith("--config.data.length")] + ["--config.data.length=64"]
        assert program.main(program.flags(tmp_path / "run", "all", *flags, config=AUDIO)) == 0
        for name in ("pc", "ddim"):
            with np.load(tmp_path / "run" / "samples" / f"{name}.npz") as stored:
                levels = stored["image"]
            assert (levels.shape, levels.dtype) == ((8, 64, 1), np.uint16)
            files = sorted((tmp_path / "run" / "samples" / name).iterdir())
            assert [path.name for path in files] == [f"{n:02d}.wav" for n in range(8)]
            for path, sound in zip(files, levels, strict=True):
                with wave.open(str(path)) as file:
                    assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
                    values = np.frombuffer(file.readframes(64), "<i2")
                np.testing.assert_array_equal(values.astype(int) + 2**15, sound[:, 0])

    def test_no_folder_and_nothing_is_written(self, tmp_path, refuse):
        said = refuse(program.flags(tmp_path / "run", "train", *SOUND, config=AUDIO), tmp_path, compiles=True)
        assert "set data.source=wav:FOLDER" in said


def test_a_folder_of_images_is_trained_on(tmp_path):
    for n in range(4):
        path = tmp_path / "mine" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((20, 30, 3), 60 * n, np.uint8)))
    flags = [
        *(*program.TINY_NETWORK, *TINY, f"--config.data.source=folder:{tmp_path / 'mine'}"),
        *("--config.data.size=8", "--config.data.classes=2", "--config.model.classes=2"),
        "--config.evaluation.metrics=frechet,sliced_wasserstein",
    ]
    assert program.main(program.flags(tmp_path / "run", "train", *flags)) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["source"] == "folder"
    assert config["data"]["path"] == str(tmp_path / "mine")


def values(**data):
    return {"data": data, "sde": {"name": "vp"}, "model": {"name": "ncsnpp"}}


def built(config, overrides, tmp_path):
    return build.build(config, overrides, tmp_path / "run", "").source


class TestArgument:
    """data.source=NAME:ARGUMENT."""

    def test_is_a_setting_of_the_source(self, tmp_path):
        for config, overrides in (
            (values(source="tfds:svhn_cropped"), {}),
            (values(source="tfds", name="svhn_cropped"), {}),
            (values(source="digits"), {"data.source": "tfds:svhn_cropped"}),
            (values(source="tfds:cifar10"), {"data.source": "tfds:svhn_cropped"}),
            (values(source="tfds:cifar10"), {"data.name": "svhn_cropped"}),
        ):
            assert built(config, overrides, tmp_path).name == "svhn_cropped"

    def test_keeps_what_the_file_says_of_the_same_source(self, tmp_path):
        config = values(source="tfds", name="cifar10", size=16)
        assert built(config, {"data.source": "tfds:svhn_cropped"}, tmp_path).size == 16
        assert built(config, {"data.source": "folder:here"}, tmp_path).size == 32

    def test_may_hold_colons_and_look_like_a_number(self, tmp_path):
        assert built(values(source="digits"), {"data.source": "folder:C:/a:b"}, tmp_path).path == "C:/a:b"
        assert built(values(source="digits"), {"data.source": "folder:12"}, tmp_path).path == "12"

    @pytest.mark.parametrize(
        ("config", "overrides", "words"),
        [
            (values(source="tfds:cifar10", name="mnist"), {}, "say the same"),
            (values(source="digits"), {"data.source": "tfds:a", "data.name": "b"}, "say the same"),
            (values(source="digits"), {"data.source": "digits:a"}, "unknown 'digits:a' (did you mean 'digits'?"),
            (values(source="digits"), {"data.source": "foldr:/some/where"}, "did you mean 'folder'"),
            (values(source="digits"), {"data.source": "toys:moons"}, "unknown toy 'moons'"),
            (values(source="digits"), {"data.source": "npz:none.npz"}, "none.npz is no readable .npz file"),
        ],
    )
    def test_mistakes(self, config, overrides, words, tmp_path):
        with pytest.raises(build.UserError) as error:
            built(config, overrides, tmp_path)
        assert words in str(error.value)


class TestLevels:
    def test_data_without_levels_are_what_they_are(self):
        levels = Levels(0)
        x = np.float32([[0.25, -3.0]])
        for same in (levels.dequantise(x, None), levels.quantise(x), levels.place(x, 0.5 * np.ones_like(x))):
            np.testing.assert_array_equal(same, x)
        assert (levels.dtype, levels.width, levels.uniform_bits) == (np.float32, 1.0, 1.0)
        np.testing.assert_array_equal(levels.unit(np.array([-1.0, 0.0, 1.0])), [0, 0.5, 1])

    def test_sixteen_bits_come_back(self):
        import jax.numpy as jnp

        levels, every = Levels(2**16), np.arange(2**16).astype(np.uint16)
        assert levels.dtype == np.uint16
        back = levels.quantise(levels.place(jnp.asarray(every), jnp.full(2**16, 0.5, jnp.float32)))
        np.testing.assert_array_equal(back, every)
        assert levels.uniform_bits == 16

    @pytest.mark.parametrize(
        ("low", "high", "points"),
        [
            (-1 - 1 / 255, 1 + 1 / 255, np.arange(256) / 127.5 - 1),
            (-1.0039216, 1.0039216, np.arange(256) / 127.5 - 1),
            (-1 / 510, 1 + 1 / 510, np.arange(256) / 255),
            (-0.0019608, 1.0019608, np.arange(256) / 255),
        ],
    )
    @pytest.mark.parametrize("share", [-0.49, 0, 0.49])
    def test_levels_of_models_that_were_trained_without_dequantisation_are_rounded(self, low, high, points, share):
        """docs/importing.md: points of 256 levels, and 0.49 of a level beside them."""
        x = np.float32(points + share * (points[1] - points[0]))
        np.testing.assert_array_equal(Levels(256, low, high).quantise(x), np.arange(256))

    @pytest.mark.parametrize(
        ("low", "high", "points"),
        [(-1, 1.0078431, np.arange(256) / 127.5 - 1), (0, 1.0039216, np.arange(256) / 255)],
    )
    @pytest.mark.parametrize("share", [0.01, 0.99])
    def test_or_rounded_down(self, low, high, points, share):
        x = np.float32(points + share * (points[1] - points[0]))
        np.testing.assert_array_equal(Levels(256, low, high).quantise(x), np.arange(256))


class TestPictures:
    def test_points_are_where_they_are(self):
        """The first coordinate to the right, the second up; the square is a quarter wider than the range."""
        picture = pictures.draw(np.float32([[0.901, 0.901]]), Levels(0))
        (row,), (column,) = np.nonzero((picture < 255).any(axis=2))
        side = pictures.POINT_PIXELS
        assert column == int((0.901 + 1.25) / 2.5 * side)
        assert side - 1 - row == int((0.901 + 1.25) / 2.5 * side)

    def test_a_sound_is_drawn_from_its_least_to_its_largest_value(self):
        height, width = pictures.WAVEFORM
        sound = np.zeros((2 * width, 1), np.uint16)
        sound[1::2] = 65535
        full = pictures.draw(sound[None], Levels(2**16))
        assert (full[2 : 2 + height, 2 : 2 + width] == pictures.INK).all()
        line = pictures.draw(np.full_like(sound, 65535)[None], Levels(2**16))[2 : 2 + height, 2 : 2 + width]
        assert (line[0] == pictures.INK).all()
        assert (line[1:] == 255).all()
