"""--mode=evaluate and --mode=statistics through main.py, on a network too small to be any good."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from score_sde.experiment import evaluate
from tests import evaluating, program
from tests.evaluating import SMALL, read

trained, run = evaluating.trained, evaluating.run


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
    assert ", 40 samples against 500 of test (lower is better; at n = 40: " in said
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


def test_pictures_of_other_settings_are_not_kept(run):
    reports = run("--config.evaluation.checkpoints=all")
    folder = reports / "evaluation" / "00000008"
    assert (folder / "ddim_nearest.png").exists()
    assert (reports / "evaluation" / "curve.png").exists()
    run("--config.evaluation.metrics=frechet", "--config.sampling.seed=5")
    assert {path.name for path in folder.iterdir()} == {"ddim.png", "real.png"}
    assert not (reports / "evaluation" / "curve.png").exists()
    assert "nearest" not in (reports / "report.html").read_text()


def test_few_samples_have_neighbours_too(run):
    for count, rows in ((12, 2), (3, 2)):
        reports = run(f"--config.sampling.num_samples={count}", "--config.evaluation.metrics=memorisation")
        with Image.open(reports / "evaluation" / "00000008" / "ddim_nearest.png") as picture:
            assert picture.width / picture.height == pytest.approx(min(8, count) / rows, rel=0.3)


def test_metrics_say_what_they_compare_with(run, capsys):
    metrics = "--config.evaluation.metrics=frechet,memorisation,recognition,inception_score"
    reports = run("--config.evaluation.reference=train", metrics, "--config.evaluation.extractors=digits_cnn")
    figures = read(reports / "evaluation.json")["metrics"]
    compared = {row["metric"]: (row["against"], row["ddim"]["whole"]["records"]) for row in figures.values()}
    assert compared == {
        "frechet": ("train", 1297),
        "memorisation": ("test", 500),
        "recognition": ("train", 1297),
        "inception_score": ("", None),
    }
    assert read(reports / "summary.json")["metrics"]["memorisation_digits_cnn"]["against"] == "test"
    assert ", against train" in (reports / "report.html").read_text()
    assert ", 40 samples (higher is better" in capsys.readouterr().out


def test_what_an_earlier_model_left_is_set_aside(run):
    """Its checkpoints were removed, and it is trained again from the start."""
    reports = run("--config.evaluation.checkpoints=all")
    shutil.rmtree(reports.parent / "checkpoints")
    assert program.main(program.flags(reports.parent, "train", *SMALL, "--config.training.duration=4 steps")) == 0
    assert (reports.parent / "earlier_1" / "evaluation" / "best.json").is_file()
    run("--config.evaluation.checkpoints=all")
    assert {row["step"] for row in read(reports / "evaluation" / "best.json").values()} == {4}


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
