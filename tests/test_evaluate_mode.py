"""--mode=evaluate and --mode=statistics through main.py, on a network too small to be any good."""

import fcntl
import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from score_sde.data import SOURCES, whole
from score_sde.errors import UserError
from score_sde.experiment import batches, evaluate
from score_sde.experiment.evaluating import folder, real
from score_sde.experiment.evaluating.figures import Reference
from score_sde.experiment.pictures import write_png
from score_sde.writers import read_arrays
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


def test_a_checkpoint_has_every_figure_beside_its_floor(run):
    reports = run()
    figures, summary = read(reports / "evaluation.json"), read(reports / "summary.json")
    assert figures["step"] == summary["step"] == 8
    assert list(figures["metrics"]) == ["frechet_pixels", "kernel_pixels", "recall_pixels", "memorisation_pixels"]
    for row in figures["metrics"].values():
        assert row["n"] == 40
        assert row["extractor"] == "pixels at 8x8, not resampled"
        assert row["ddim"]["whole"]["n"] == 40
        assert row["ddim"]["whole"]["records"] == 500
        assert all(np.isfinite(row[name]["value"]) for name in ("real", "noise", "ddim"))
    frechet = figures["metrics"]["frechet_pixels"]
    assert frechet["real"]["value"] < frechet["ddim"]["value"]
    assert "seconds" not in json.dumps(summary)
    for name in ("ddim", "real", "ddim_nearest"):
        assert (reports / "evaluation" / "00000008" / f"{name}.png").is_file()
    page = (reports / "report.html").read_text()
    assert "nearest training images" in page
    assert "pixels at 8x8, not resampled" in page


def test_all_checkpoints_are_scored_once(run, capsys):
    reports = run("--config.evaluation.checkpoints=all")
    said = capsys.readouterr().out
    floor = read(reports / "evaluation.json")["metrics"]["frechet_pixels"]["real"]["value"]
    assert "evaluate: step 8, ddim: 40 samples" in said
    assert ", 40 against 500 of test (lower is better; at n = 40: " in said
    assert f"real data {floor:.4g}) pixels at 8x8, not resampled" in said
    assert [path.name for path in sorted((reports / "evaluation").glob("*.json"))] == [
        *("00000004.json", "00000008.json", "best.json"),
    ]
    assert (reports / "evaluation" / "curve.png").is_file()
    scores = {step: read(reports / "evaluation" / f"{step:08d}.json")["metrics"]["frechet_pixels"] for step in (4, 8)}
    values = {step: row["ddim"]["value"] for step, row in scores.items()}
    best = read(reports / "evaluation" / "best.json")["frechet_pixels"]
    assert (best["step"], best["value"]) == min(
        (step, value) for step, value in values.items() if value == best["value"]
    )
    assert best["value"] == min(values.values())
    assert (best["extractor"], best["n"]) == ("pixels at 8x8, not resampled", 40)
    assert best["real"] == scores[8]["real"]["value"]
    # The lowest share of samples near training data is not the best.
    assert set(read(reports / "evaluation" / "best.json")) == {"frechet_pixels", "kernel_pixels", "recall_pixels"}
    capsys.readouterr()
    run("--config.evaluation.checkpoints=follow")  # ends, since the training has
    said = capsys.readouterr().out
    assert "evaluate: step 4 is done" in said
    assert "statistics" not in said  # nothing is looked at where nothing is to be scored
    assert "evaluate: step 8 is done" in said


def test_figures_of_other_settings_are_not_in_the_curve(run):
    reports = run("--config.evaluation.checkpoints=all", "--config.evaluation.metrics=frechet")
    run("--config.evaluation.metrics=frechet", "--config.sampling.num_samples=24")  # of step 8 alone
    best = read(reports / "evaluation" / "best.json")["frechet_pixels"]
    assert best["step"] == 8
    assert best["value"] == read(reports / "evaluation.json")["metrics"]["frechet_pixels"]["ddim"]["value"]


def test_following_ends_with_the_training(run, monkeypatch, capsys):
    """A longer training is waited for; a checkpoint that comes meanwhile is scored."""
    monkeypatch.setattr(evaluate, "POLL_SECONDS", 0.0)
    known, longer, seen = evaluate._known_steps, iter([[], [], [4], [4], [4, 8]]), []

    def steps(experiment):
        page = experiment.workdir.reports / "report.html"
        seen.append(page.is_file())
        return next(longer, known(experiment))

    monkeypatch.setattr(evaluate, "_known_steps", steps)
    run("--config.evaluation.checkpoints=follow", "--config.evaluation.metrics=frechet")
    said = capsys.readouterr().out
    assert said.count("evaluate: waits for checkpoints after step 0") == 1
    assert said.count("evaluate: waits for checkpoints after step 4") == 1
    assert said.index("step 4, ddim") < said.index("step 8, ddim")
    assert seen == [False, False, False, True, True]  # the page is there while it waits for the next


def test_following_begins_before_the_first_checkpoint(tmp_path, monkeypatch, capsys):
    def end(seconds):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluate.time, "sleep", end)
    flags = [f"--config.evaluation.statistics={tmp_path / 'statistics'}", "--config.evaluation.checkpoints=follow"]
    assert program.main(program.flags(tmp_path / "w", "evaluate", *SMALL, *flags)) == 75
    assert "evaluate: waits for checkpoints after step 0" in capsys.readouterr().out


def test_another_training_in_the_same_place_is_scored_anew(run, tmp_path):
    frechet = "--config.evaluation.metrics=frechet"
    first = read(run(frechet) / "evaluation.json")
    shutil.rmtree(tmp_path / "w" / "checkpoints")
    (tmp_path / "w" / "config.json").unlink()
    rate = "--config.optimiser.learning_rate=0.05"
    run(rate, mode="train")
    again = read(run(frechet, rate) / "evaluation.json")
    assert again["step"] == first["step"] == 8
    assert again["metrics"]["frechet_pixels"]["ddim"] != first["metrics"]["frechet_pixels"]["ddim"]


def test_classes_are_counted_of_the_data_that_the_classifier_knows(run, tmp_path):
    """Not of others in the same shape with as many classes."""
    both = ("--config.evaluation.metrics=frechet", "--config.evaluation.extractors=digits_cnn")
    seen = read(run(*both) / "evaluation.json")["samplers"]["ddim"]["classes"]["digits_cnn"]
    assert sum(seen["histogram"]) == 40
    label = np.arange(60) % 10
    image = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "other.npz", image=image, label=label)
    other = (f"--config.data.source=npz:{tmp_path / 'other.npz'}", "--config.data.classes=10")
    workdir = tmp_path / "other"
    assert program.main(program.flags(workdir, "train", *SMALL, *other, "--config.training.duration=1 steps")) == 0
    assert program.main(program.flags(workdir, "evaluate", *SMALL, *other, *both)) == 0
    assert read(workdir / "reports" / "evaluation.json")["samplers"]["ddim"]["classes"] == {}


def test_samples_that_are_there_are_scored_as_they_are(run):
    first = read(run() / "evaluation.json")["metrics"]
    reports = run(mode="sample")
    shutil.rmtree(reports)
    assert read(run() / "evaluation.json")["metrics"] == first


def test_killed_at_three_places_it_comes_to_the_same_summary(trained, tmp_path):
    kept = f"--config.evaluation.statistics={tmp_path / 'statistics'}"
    workdirs = [tmp_path / name for name in ("undisturbed", "killed")]
    for workdir in workdirs:
        shutil.copytree(trained, workdir)
    assert program.main(program.flags(workdirs[0], "evaluate", *SMALL, kept)) == 0
    shutil.rmtree(tmp_path / "statistics")
    flags = program.flags(workdirs[1], "evaluate", *SMALL, kept)
    batches = lambda: len(list((workdirs[1] / "reports").glob("evaluation/.*/*/[0-9]*.npz")))
    for count in (1, 2, 4):
        with program.started(*flags) as process:
            program.wait_for(lambda count=count: batches() >= count, process)
            process.send_signal(signal.SIGKILL)
    assert not (workdirs[1] / "reports" / "summary.json").exists()
    result = program.run(*flags)
    assert result.status == 0, result.stderr
    one, two = ((workdir / "reports" / "summary.json").read_bytes() for workdir in workdirs)
    assert one == two
    assert not list((workdirs[1] / "reports" / "evaluation").glob(".*"))


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


BAD = {
    "metric": ("evaluation.metrics=frechet_distance", ["unknown metric 'frechet_distance'", "frechet"]),
    "no extractor": ("evaluation.extractors=", ["evaluation.extractors must name at least one extractor"]),
    "extractor": ("evaluation.extractors=pixel", ["unknown extractor 'pixel'", "did you mean 'pixels'"]),
    "of extractors": ("extractors.inception.fil=a", ["unknown key extractors.inception.fil", "file"]),
    "no extractor of this": ("extractors.vgg.file=a", ["extractors: unknown 'vgg'"]),
    "weights": ("evaluation.extractors=inception", ["extractors.inception.file", "pt_inception"]),
    "missing weights": (
        "evaluation.extractors=inception --config.extractors.inception.file=/nowhere.pth",
        ["there is no file /nowhere.pth"],
    ),
    "other images": ("evaluation.extractors=fashion_cnn", ["is for images of shape (28, 28, 1), not (8, 8, 1)"]),
    "classifier": ("evaluation.metrics=inception_score", ["'inception_score' needs an extractor with a classifier"]),
    "reference": ("evaluation.reference=tset", ["there is no such file; give test, train or a .npz file"]),
    "no statistics": (f"evaluation.reference={__file__}", ["is no .npz file with mu and sigma"]),
    "images": ("evaluation.images=/nowhere", ["evaluation.images", "/nowhere"]),
    "checkpoints": ("evaluation.checkpoints=best", ["checkpoints", "'newest'"]),
    "statistics": ("evaluation.statistics=/dev/null/x", ["/dev/null/x cannot be written", "set evaluation.statistics"]),
    "few": ("sampling.num_samples=1", ["num_samples must be at least 2"]),
    "splits": (
        "metrics.inception_splits=41 --config.evaluation.metrics=inception_score "
        "--config.evaluation.extractors=digits_cnn",
        ["'inception_score' over 41 splits (metrics.inception_splits) needs as many samples a set, not 40"],
    ),
}

# What a file of statistics may hold, and what is said of it.
STATISTICS = {
    "no covariance": ({"sigma": np.array([[1.0, 2.0], [2.0, 1.0]])}, "sigma is not a covariance: an eigenvalue is -1"),
    "other features": ({}, "mu and sigma are of 2 features, pixels has 64"),
    "no record": ({"record": np.asarray("[1]")}, "mu and sigma are of 2 features, pixels has 64"),
    "not finite": ({"mu": np.array([0, np.nan])}, "mu or sigma is not finite"),
    "not symmetric": ({"sigma": np.array([[1.0, 0.9], [0.0, 1.0]])}, "sigma is not symmetric"),
    "empty": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "are of shapes (0,) and (0, 0)"),
    "complex": ({"mu": np.zeros(2, complex)}, "is no .npz file with mu and sigma"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_one_line(case, trained, capsys):
    text, words = BAD[case]
    flags = [f"--config.{each}" for each in text.split(" --config.")]
    before = program.snapshot(trained)
    assert program.main(program.flags(trained, "evaluate", *SMALL, *flags)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line, (word, line)
    assert program.snapshot(trained) == before


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
