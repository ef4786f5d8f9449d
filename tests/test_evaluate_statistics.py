"""What samples are compared with, kept and used again; and images in the place of samples."""

import fcntl
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from score_sde.data import SOURCES, whole
from score_sde.errors import UserError
from score_sde.experiment import batches
from score_sde.experiment.evaluating import folder, real
from score_sde.experiment.evaluating.figures import Reference
from score_sde.experiment.pictures import write_png
from score_sde.writers import read_arrays
from tests import evaluating, program
from tests.evaluating import SMALL, read

trained, run = evaluating.trained, evaluating.run


def test_statistics_are_used_again_when_and_only_when_they_match(run, tmp_path, capsys):
    files = lambda: sorted(path.name for path in (tmp_path / "statistics").glob("*.npz"))
    run(mode="statistics")
    first = files()
    assert [name.rpartition("-")[0] for name in first] == ["digits-test-pixels", "digits-train-pixels"]
    capsys.readouterr()
    run(mode="statistics")
    assert capsys.readouterr().out.count("is in") == 2
    assert files() == first
    run("--config.evaluation.extractors=pixels,digits_cnn", mode="statistics")
    assert len(files()) == 4
    stored = np.load(tmp_path / "statistics" / first[0])
    test = whole(SOURCES["digits"]().split("test"), "image").reshape(500, -1) / 16
    np.testing.assert_allclose(stored["mu"], test.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stored["sigma"], np.cov(test, rowvar=False), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("other", ["ends", "dies"])
def test_two_runs_that_need_the_same_statistics_take_turns(other, run, tmp_path, monkeypatch, capsys):
    """One waits while another holds the folder of what is unfinished; and goes on where that died before its end."""
    run(mode="statistics")
    file = next((tmp_path / "statistics").glob("digits-test-pixels-*.npz"))
    finished, lock = file.rename(tmp_path / file.name), file.with_name(f".{file.stem}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)

    def pause(seconds):
        if other == "ends":
            shutil.copy2(finished, file)
            lock.unlink()
        os.close(handle)

    monkeypatch.setattr(batches.time, "sleep", pause)
    capsys.readouterr()
    run(mode="statistics")
    said = capsys.readouterr().out
    assert "statistics digits-test-pixels: another run is at it; waits for that" in said
    made = f"statistics: digits-test-pixels, 500 records by pixels at 8x8, not resampled, in {file}"
    assert (made in said) == (other == "dies")
    assert file.read_bytes() == finished.read_bytes()
    assert not list(file.parent.glob(".*"))


def test_statistics_go_on_with_batches_of_another_size(run, tmp_path, monkeypatch):
    """None is left out, and none is taken twice, where the extractor computes fewer images at a time than before."""
    run(mode="statistics")
    files = {file.name: file.read_bytes() for file in (tmp_path / "statistics").glob("*.npz")}
    shutil.rmtree(tmp_path / "statistics")
    write = real.write_arrays

    def die(path, arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(real, "BATCH", 300)
    monkeypatch.setattr(real, "write_arrays", die)
    with pytest.raises(KeyboardInterrupt):
        run(mode="statistics")
    monkeypatch.setattr(real, "BATCH", 256)
    monkeypatch.setattr(real, "write_arrays", write)
    run(mode="statistics")
    assert {file.name: file.read_bytes() for file in (tmp_path / "statistics").glob("*.npz")} == files


def test_what_the_reference_cannot_give_is_said_before_images_are_looked_at(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "equal.npz", image=np.zeros((90, 8, 8, 1), np.uint8))
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(5):
        write_png(place / f"{number}.png", np.full((8, 8, 1), number, np.uint8))
    monkeypatch.setattr(folder, "looked_at", None)
    flags = [
        *(f"--config.data.source=npz:{tmp_path / 'equal.npz'}", "--config.evaluation.metrics=mmd"),
        *(f"--config.evaluation.images={place}", f"--config.evaluation.statistics={tmp_path / 'statistics'}"),
    ]
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *flags)) == 2
    assert "more than half of the reference's pairs of samples are equal" in capsys.readouterr().err


def test_images_of_another_size_are_told_before_anything_is_looked_at(tmp_path, monkeypatch, capsys):
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(5):
        write_png(place / f"{number}.png", np.full((8, 9 if number == 3 else 8, 1), number, np.uint8))
    monkeypatch.setattr(Reference, "prepare", None)
    flags = [f"--config.evaluation.images={place}", "--config.evaluation.metrics=frechet"]
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *flags)) == 2
    assert "3.png has 9x8 pixels, 0.png has 8x8; they must be of one size" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["frechet", "inception_score"])
def test_a_folder_in_the_order_of_its_classes_scores_as_any(metric, tmp_path):
    """The 500 test images, named in the order of their classes, of which two sets of 250 are scored: each is of all
    classes, so that it is no farther from the halves of real data, which it is drawn from, than these are apart."""
    records = SOURCES["digits"]().split("test")
    order = np.argsort(whole(records, "label"), kind="stable")
    place = tmp_path / "pictures"
    place.mkdir()
    for number, image in enumerate(whole(records, "image")[order]):
        write_png(place / f"{number:03d}.png", np.round(image * (255 / 16)).astype(np.uint8))
    flags = [f"--config.evaluation.images={place}", f"--config.evaluation.metrics={metric}"]
    flags += ["--config.evaluation.extractors=digits_cnn", f"--config.evaluation.statistics={tmp_path / 'statistics'}"]
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *flags)) == 0
    row = read(tmp_path / "w" / "reports" / "images.json")["metrics"][f"{metric}_digits_cnn"]
    assert row["n"] == 250
    better = row["images"]["value"] / row["real"]["value"]
    assert better < 1 if metric == "frechet" else better > 0.95


def test_noise_is_looked_at_once_and_no_more_than_is_needed(run, tmp_path):
    few = "--config.sampling.num_samples=600"  # more than half of the test split
    seen = []
    for steps in ("newest", "all"):
        run("--config.evaluation.metrics=frechet", few, f"--config.evaluation.checkpoints={steps}")
        (file,) = (tmp_path / "statistics").glob("noise-pixels-*.npz")
        seen.append((file.stat().st_mtime_ns, len(np.load(file)["features"])))
    assert seen[0] == seen[1]
    assert seen[0][1] == 250


def test_statistics_of_another_project(run, tmp_path):
    """Of mean and covariance alone there is the one figure, and no floor."""
    run(mode="statistics")
    own = next((tmp_path / "statistics").glob("digits-test-pixels-*.npz"))
    arrays = np.load(own)
    np.savez(tmp_path / "other.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    frechet = "--config.evaluation.metrics=frechet"
    figures = [
        read(run(frechet, f"--config.evaluation.reference={each}") / "evaluation.json")["metrics"]["frechet_pixels"]
        for each in ("test", own, tmp_path / "other.npz")
    ]
    values = [row["ddim"]["whole"]["value"] for row in figures]
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert values[2] == pytest.approx(values[0], rel=1e-9)
    assert figures[2]["real"]["value"] is None
    np.savez(tmp_path / "other.npz", mu=arrays["mu"] + 1, sigma=arrays["sigma"])  # another content: scored again
    again = read(run(frechet, f"--config.evaluation.reference={tmp_path / 'other.npz'}") / "evaluation.json")
    assert again["metrics"]["frechet_pixels"]["ddim"]["whole"]["value"] > values[0] + 1


def test_neither_statistics_nor_images_need_a_network_that_fits(tmp_path):
    """Images of 9x9, which a U-Net of three levels refuses."""
    place = tmp_path / "pictures"
    for number in range(60):
        (place / str(number % 2)).mkdir(parents=True, exist_ok=True)
        write_png(place / str(number % 2) / f"{number}.png", np.full((9, 9, 1), number, np.uint8))
    of = [f"--config.data.source=folder:{place}", "--config.data.size=9", "--config.data.channels=1"]
    of += ["--config.model.channel_multipliers=1,2,2", "--config.evaluation.metrics=frechet"]
    of += ["--config.evaluation.extractors=pixels", f"--config.evaluation.statistics={tmp_path / 'statistics'}"]
    assert program.main(program.flags(tmp_path / "w", "train", *SMALL, *of)) == 2
    assert program.main(program.flags(tmp_path / "w", "statistics", *SMALL, *of)) == 0
    assert len(list((tmp_path / "statistics").glob("*.npz"))) == 2
    images = [*of, f"--config.evaluation.images={place}"]
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *images)) == 0


def test_a_folder_of_images(run, tmp_path, capsys):
    """The test images themselves, of which only their rounding to 8 bits is a distance away."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number, image in enumerate(whole(SOURCES["digits"]().split("test"), "image")):
        write_png(place / f"{number}.png", np.round(image * (255 / 16)).astype(np.uint8))
    (place / "labels.json").write_text('{"labels": [["of another set.png", 0]]}')  # classes are not asked for
    both = ("--config.evaluation.extractors=pixels,digits_cnn", "--config.evaluation.metrics=frechet,inception_score")
    told = read(run(f"--config.evaluation.images={place}", *both) / "images.json")
    assert told["samples"] == 500
    assert abs(told["metrics"]["frechet_pixels"]["images"]["whole"]["value"]) < 1e-4
    assert set(told["metrics"]) == {"frechet_pixels", "frechet_digits_cnn", "inception_score_digits_cnn"}
    assert "500 images of 8x8" in capsys.readouterr().out


def test_images_that_were_overwritten_are_looked_at_anew(run, tmp_path, monkeypatch):
    """Of a run that was killed at its end, whose batches are kept: files of the same names and sizes, others in them.
    A name need not be UTF-8."""
    monkeypatch.setattr(folder, "discard", lambda unfinished: None)
    place = tmp_path / "pictures"
    place.mkdir()
    figures = []
    for seed in (0, 0, 1):
        for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (6, 8, 8), np.uint8)):
            Image.fromarray(image).save(os.fsencode(place) + b"/\xe9%d.bmp" % number, format="bmp")
        reports = run(f"--config.evaluation.images={place}", "--config.evaluation.metrics=frechet")
        figures.append(read(reports / "images.json")["metrics"]["frechet_pixels"]["images"]["whole"]["value"])
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]


STATISTICS = {
    "no covariance": ({"sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "sigma is not a covariance: an eigenvalue is -1"),
    "other features": ({}, "mu and sigma are of 2 features, pixels has 64"),
    "no record": ({"record": np.asarray("[1]")}, "mu and sigma are of 2 features, pixels has 64"),
    "not finite": ({"mu": np.array([0, np.nan])}, "mu or sigma is not finite"),
    "not symmetric": ({"sigma": np.array([[1.0, 0.9], [0.0, 1.0]])}, "sigma is not symmetric"),
    "empty": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "are of shapes (0,) and (0, 0)"),
    "complex": ({"mu": np.zeros(2, complex)}, "is no .npz file with mu and sigma"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_that_cannot_be_compared_with_are_refused(case, trained, tmp_path, capsys):
    """Before anything is sampled."""
    given, words = STATISTICS[case]
    np.savez(tmp_path / "given.npz", **({"mu": np.zeros(2), "sigma": np.eye(2)} | given))
    before = program.snapshot(trained)
    flags = [f"--config.evaluation.reference={tmp_path / 'given.npz'}", "--config.evaluation.metrics=frechet"]
    assert program.main(program.flags(trained, "evaluate", *SMALL, *flags)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line
    assert program.snapshot(trained) == before


def test_damaged_statistics_are_told_whatever_the_damage(tmp_path):
    """By name and in one line, or read as they are; nothing else comes of it."""
    told = []
    np.savez_compressed(tmp_path / "sound.npz", mu=np.zeros(64), sigma=np.eye(64))
    sound, draw = (tmp_path / "sound.npz").read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(sound)
        for place in draw.integers(len(content), size=3):
            content[place] = draw.integers(256)
        (tmp_path / "damaged.npz").write_bytes(content)
        read_arrays(tmp_path / "damaged.npz")
        try:
            real.foreign(tmp_path / "damaged.npz")
        except UserError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all("damaged.npz" in line and "\n" not in line for line in told)


@pytest.mark.parametrize("extractors", ["", "fashion_cnn", "inception"])
def test_statistics_are_not_begun_without_an_extractor(extractors, tmp_path, capsys):
    flags = [f"--config.evaluation.extractors={extractors}", f"--config.evaluation.statistics={tmp_path / 'kept'}"]
    assert program.main(program.flags(tmp_path / "w", "statistics", *SMALL, *flags)) == 2
    assert "evaluation.extractors" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_a_folder_is_checked_by_its_own_number_of_images(trained, tmp_path, capsys):
    """Not by that of samples: too few of one are no matter where the other is scored."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(5):
        write_png(place / f"{number}.png", np.full((8, 8, 1), number, np.uint8))
    flags = [f"--config.evaluation.images={place}", "--config.evaluation.metrics=precision"]
    assert program.main(program.flags(trained, "evaluate", *SMALL, *flags)) == 2
    assert "'precision' needs at least 6 samples a set, not 5" in capsys.readouterr().err
    flags = [*flags[:1], "--config.evaluation.metrics=frechet", "--config.sampling.num_samples=1"]
    kept = f"--config.evaluation.statistics={tmp_path / 'statistics'}"
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *flags, kept)) == 0
