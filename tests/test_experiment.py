"""The modes: what they leave in the workdir, that samples depend on nothing but their index, and interruption."""

import dataclasses
import html.parser
import json
import re
import shutil

import jax
import numpy as np
import pytest

from score_sde.checkpoint import Checkpoints
from score_sde.experiment import batches
from score_sde.training.interrupt import Interrupted, StopRequest
from score_sde.writers import MetricWriter
from tests import program

SAMPLERS = ("pc", "ode", "ddim")


def sample(workdir, number: int, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every sampler."""
    shutil.rmtree(workdir / "samples")
    sizes = (f"--config.sampling.num_samples={number}", f"--config.sampling.batch_size={batch_size}")
    assert program.main(program.flags(workdir, "sample", *program.FINISHED, *sizes)) == 0
    return {name: dict(np.load(workdir / "samples" / f"{name}.npz")) for name in SAMPLERS}


class TestSample:
    def test_first_samples_do_not_change_with_their_number_or_batch(self, workdir):
        few, many = sample(workdir, 16, 16), sample(workdir, 64, 16)
        other = sample(workdir, 20, 32)  # the last batch is not full
        for name in SAMPLERS:
            assert (len(few[name]["image"]), len(many[name]["image"]), len(other[name]["image"])) == (16, 64, 20)
            for field in ("image", "samples", "evaluations"):
                np.testing.assert_array_equal(few[name][field], many[name][field][:16])
            # Another batch size is another program, equal but for rounding.
            np.testing.assert_allclose(few[name]["samples"], other[name]["samples"][:16], atol=1e-4)
            np.testing.assert_allclose(many[name]["samples"][16:20], other[name]["samples"][16:], atol=1e-4)
            distinct = {row.tobytes() for row in many[name]["samples"]}
            assert len(distinct) == 64

    def test_files(self, finished):
        for name in SAMPLERS:
            arrays = dict(np.load(finished / "samples" / f"{name}.npz", allow_pickle=False))
            assert arrays["samples"].shape == arrays["image"].shape == (16, 8, 8, 1)
            assert arrays["samples"].dtype == np.float32
            assert arrays["image"].dtype == np.uint8
            assert np.isfinite(arrays["samples"]).all()
            # Level k of 17 is the interval [2k/17 − 1, 2(k + 1)/17 − 1).
            level = np.clip(np.floor((arrays["samples"].astype(np.float64) + 1) * 17 / 2), 0, 16)
            edge = np.abs((arrays["samples"] + 1) * 8.5 - np.round((arrays["samples"] + 1) * 8.5)) < 1e-5
            assert ((arrays["image"] == level) | edge).all()
            record = json.loads(str(arrays["record"]))
            assert record["step"] == 8
            assert record["sampler"] == name
            assert (finished / "samples" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in (finished / "samples" / "training").iterdir()] == ["step_00000004.png"]
        assert not list(finished.rglob("*.partial*"))
        assert not [path for path in (finished / "samples").iterdir() if path.name.startswith(".")]

    def test_evaluations_are_those_spent(self, finished):
        spent = {name: np.load(finished / "samples" / f"{name}.npz")["evaluations"] for name in SAMPLERS}
        assert set(spent["pc"]) == {2 * 2 + 1}  # predictor and corrector at each of 2 steps, and the last denoising
        assert set(spent["ddim"]) == {3 + 1}
        assert (spent["ode"] > 1).all()

    def test_only_what_is_missing_is_made(self, workdir, capsys):
        (workdir / "samples" / "ddim.npz").unlink()
        (workdir / "samples" / "pc.npz").write_bytes(b"damaged")
        kept = program.snapshot(workdir / "samples" / "ode.npz")
        old = {name: dict(np.load(workdir / "samples" / f"{name}.npz")) for name in ("ode",)}
        capsys.readouterr()
        assert program.main(program.flags(workdir, "sample", *program.FINISHED)) == 0
        out = capsys.readouterr().out
        assert "ode is done" in out
        assert "ddim is done" not in out
        assert "pc is done" not in out
        assert program.snapshot(workdir / "samples" / "ode.npz") == kept
        assert old

    def test_interrupted_between_batches_and_gone_on_with(self, workdir, monkeypatch, capsys):
        """One sampler of four batches, stopped after two: the second run computes the other two."""
        sizes = ("--config.sampling.num_samples=64", "--config.sampling.samplers=ddim")
        arguments = program.flags(workdir, "sample", *program.FINISHED, *sizes)
        computed, write = [], batches.write_arrays

        def interrupted(path, arrays):
            write(path, arrays)
            computed.append(path.name)
            if len(computed) == 2:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(batches, "write_arrays", interrupted)
        assert program.main(arguments) == 75
        assert "SIGTERM" in capsys.readouterr().err
        assert computed == ["000000.npz", "000001.npz"]
        assert program.main(arguments) == 0
        assert computed == [f"{number:06d}.npz" for number in range(4)]
        joined = np.load(workdir / "samples" / "ddim.npz")["samples"]
        shutil.copytree(workdir, workdir.parent / "again")
        monkeypatch.setattr(batches, "write_arrays", write)
        shutil.rmtree(workdir.parent / "again" / "samples")
        assert program.main(program.flags(workdir.parent / "again", "sample", *program.FINISHED, *sizes)) == 0
        np.testing.assert_array_equal(joined, np.load(workdir.parent / "again" / "samples" / "ddim.npz")["samples"])


def test_evaluation_restores_the_checkpoint_once(workdir, monkeypatch):
    """Whether it finds samples or makes some."""
    restored, restore = [], Checkpoints.restore_ema
    monkeypatch.setattr(Checkpoints, "restore_ema", lambda *given: restored.append(given) or restore(*given))
    (workdir / "samples" / "ddim.npz").unlink()
    shutil.rmtree(workdir / "reports" / "evaluation")
    for count in (1, 2):
        assert program.main(program.flags(workdir, "evaluate", *program.FINISHED)) == 0
        assert len(restored) == count


def test_a_model_trained_again_is_another(workdir, capsys):
    """Of the same config and step: nothing that was found of the old parameters is taken for theirs."""
    flags = [program.flags(workdir, mode, *program.FINISHED) for mode in ("sample", "likelihood", "evaluate")]
    experiment = program.experiment(workdir, *program.FINISHED)
    checkpoints = experiment.open_checkpoints(read_only=False)
    state = checkpoints.restore(experiment.abstract_state()).state
    checkpoints.clear()
    old = jax.tree.leaves(state.ema)[0]
    checkpoints.save(dataclasses.replace(state, ema=jax.tree.map(lambda leaf: 0.9 * leaf, state.ema)), {})
    checkpoints.close()
    assert not np.array_equal(jax.tree.leaves(experiment.restore()[2])[0], old)
    for arguments in flags:
        for done in (False, True):
            capsys.readouterr()
            assert program.main(arguments) == 0
            out = capsys.readouterr().out
            assert bool(re.search(r"ddim is done|likelihood: done|step 8 is done", out)) == done


class TestRunBatches:
    def compute(self, number: int) -> dict[str, np.ndarray]:
        self.computed.append(number)
        return {"value": np.full(3, number)}

    @pytest.fixture(autouse=True)
    def begin(self):
        self.computed = []

    def run(self, folder, fingerprint: str, count: int, stop: StopRequest, compute=None):
        return batches.run_batches("work", folder, fingerprint, count, compute or self.compute, stop)

    def test_keeps_what_was_finished(self, tmp_path):
        stop = StopRequest()

        def compute(number):
            if number == 2:
                stop.requested = "SIGTERM"  # comes while a batch is computed: that one is finished and kept
            return self.compute(number)

        with pytest.raises(Interrupted, match="SIGTERM"):
            self.run(tmp_path / "parts", "a", 5, stop, compute)
        assert self.computed == [0, 1, 2]
        results = self.run(tmp_path / "parts", "a", 5, StopRequest())
        assert self.computed == [0, 1, 2, 3, 4]
        assert [int(result["value"][0]) for result in results] == [0, 1, 2, 3, 4]
        batches.discard(tmp_path / "parts")
        assert not (tmp_path / "parts").exists()

    def test_other_work_is_not_mixed_in(self, tmp_path):
        self.run(tmp_path / "parts", "a", 2, StopRequest())
        self.run(tmp_path / "parts", "b", 2, StopRequest())
        assert self.computed == [0, 1, 0, 1]
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["b"]

    def test_more_batches_of_the_same_work(self, tmp_path):
        self.run(tmp_path / "parts", "a", 2, StopRequest())
        assert len(self.run(tmp_path / "parts", "a", 4, StopRequest())) == 4
        assert self.computed == [0, 1, 2, 3]

    def test_cut_short_file_is_made_again(self, tmp_path):
        """A kill while a file is written leaves only its temporary name."""
        self.run(tmp_path / "parts", "a", 1, StopRequest())
        file = tmp_path / "parts" / "a" / "000000.npz"
        file.rename(file.with_name(".000000.partial.npz"))
        self.run(tmp_path / "parts", "a", 1, StopRequest())
        assert self.computed == [0, 0]


class Links(html.parser.HTMLParser):
    """What a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


class TestReport:
    def test_page_opens_without_a_network(self, finished):
        page = (finished / "reports" / "report.html").read_text(encoding="utf-8")
        links = Links()
        links.feed(page)
        assert links.tags.count("img") == 2 * len(SAMPLERS) + 2  # and their neighbours, real data, the loss curve
        assert all(target.startswith("data:image/") for target in links.targets)
        assert not {"script", "link", "iframe", "object", "embed"} & set(links.tags)
        without_pictures = re.sub(r'"data:image/[^"]*"', "", page)
        assert not re.search(r"https?://|@import|url\(", without_pictures)
        for word in (*SAMPLERS, "real test data", "pure noise", "bits/dim", "main.py", "beta_max"):
            assert word in page

    def test_summary(self, finished):
        refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
        summary = json.loads((finished / "reports" / "summary.json").read_text(), parse_constant=refuse)
        assert [row["name"] for row in summary["rows"]] == [*SAMPLERS, "real", "noise"]
        assert summary["step"] == 8
        assert summary["reference"] == {"data": "test", "records": 500}
        for row in summary["rows"]:
            assert set(row["scores"]) == set(summary["metrics"]) == {"frechet_pixels", "recognition_pixels"}
            assert ("evaluations" in row) == (row["name"] in SAMPLERS)
        assert {metric["n"] for metric in summary["metrics"].values()} == {16}
        assert summary["likelihood"]["test"]["images"] == 500
        assert summary["likelihood"]["noise"]["images"] == 4
        assert summary["likelihood"]["uniform"] == pytest.approx(np.log(17) / np.log(2))

    def test_real_data_score_better_than_noise(self, finished):
        summary = json.loads((finished / "reports" / "summary.json").read_text())
        rows = {row["name"]: row["scores"] for row in summary["rows"]}
        for name, metric in summary["metrics"].items():
            real, noise = rows["real"][name]["value"], rows["noise"][name]["value"]
            assert (real < noise) if metric["better"] == "lower" else (real > noise), name
        assert 0 <= rows["noise"]["recognition_pixels"]["value"] < 0.1
        assert 0.6 < rows["real"]["recognition_pixels"]["value"] <= 1

    def test_likelihood_file(self, finished):
        figures = json.loads((finished / "reports" / "likelihood.json").read_text())
        arrays = np.load(finished / "reports" / "likelihood.npz")
        bits = [arrays[name] for name in arrays.files if arrays[name].shape[-1:] == (500,)]
        means = [float(each.astype(np.float64).mean()) for each in bits]
        assert pytest.approx(figures["test"]["bits_per_dim"], rel=1e-6) in means

    def test_report_without_likelihood(self, workdir):
        (workdir / "reports" / "likelihood.json").unlink()
        assert program.main(program.flags(workdir, "evaluate", *program.FINISHED)) == 0
        assert json.loads((workdir / "reports" / "summary.json").read_text())["likelihood"] is None
        assert "--mode=likelihood" in (workdir / "reports" / "report.html").read_text()

    def test_scores_do_not_change_when_repeated(self, workdir):
        before = (workdir / "reports" / "evaluation.json").read_text()
        (workdir / "reports" / "evaluation.json").unlink()
        assert program.main(program.flags(workdir, "evaluate", *program.FINISHED)) == 0
        assert (workdir / "reports" / "evaluation.json").read_text() == before


class TestMetrics:
    def test_lines_of_a_killed_run_are_dropped(self, tmp_path):
        lines = [
            '{"step": 2, "loss": 1.0}\n',
            '{"step": 4, "loss": 0.5}\n',
            '{"step": 6, "loss": 0.4}\n',
            '{"step": 8, "lo',
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        writer = MetricWriter(tmp_path, resumed_at=4)
        writer.scalars(6, {"loss": 0.25})
        writer.close()
        read = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert read == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 6, "loss": 0.25}]

    def test_events_are_written(self, finished):
        assert [path for path in finished.iterdir() if path.name.startswith("events.out.tfevents")]


def test_data_that_are_not_there_are_missed_before_the_workdir_is_made(tmp_path, refuse):
    flags = ("--config.data.source=tfds", f"--config.data.directory={tmp_path}", "--config.model.classes=0")
    message = refuse(program.flags(tmp_path / "run", "train", *program.TINY, *flags), tmp_path)
    assert "cifar10 is not prepared as array_record" in message
