"""--mode=compare, at settings so small that compiling is most of the work."""

import csv
import json
import os
import re
import shlex
import shutil
import signal

import numpy as np
import pytest

from configs import digits
from score_sde import build
from score_sde.errors import UserError
from score_sde.evaluation.exact import EXACT_METRICS, Law
from score_sde.evaluation.moments import Gaussian
from score_sde.evaluation.sliced_wasserstein import DIRECTIONS, directions
from score_sde.experiment.comparison import bench as bench_module
from score_sde.experiment.comparison.cells import at_budget, evaluations, samplers_of
from score_sde.experiment.comparison.plots import pareto
from score_sde.oracles import gaussian
from score_sde.samplers import SOLVERS, Sampler
from score_sde.sde import VP
from score_sde.training.interrupt import Interrupted, StopRequest
from tests import program

SMALL = (
    "--config.compare.seeds=2",
    "--config.compare.num_samples=64",
    "--config.compare.batch_size=32",
    "--config.compare.tolerance_factors=100,30",
)
ON_RING = ("--config.compare.oracle=ring", *SMALL)
SAMPLERS = "ddim,euler,dpmpp_2m,rk4,pc,ode"
CELLS = ("--config.compare.nfe=3,9", f"--config.compare.samplers={SAMPLERS}", "--config.samplers.ddim.last=none")


def compare(workdir, *overrides, status=0):
    assert program.main(program.flags(workdir, "compare", *overrides)) == status


def report_of(workdir):
    return json.loads((workdir / "reports" / "compare" / "compare.json").read_text())


def row_of(report, sampler, at):
    return next(row for row in report["cells"] if (row["sampler"], row["at"]) == (sampler, str(at)))


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    def make(path):
        compare(path, *ON_RING, *CELLS)

    return program.shared(tmp_path_factory, "compared_on_ring", make)


@pytest.fixture
def measured(monkeypatch):
    """The cells that are measured, as they are."""
    seen = []
    measure = bench_module.Bench.measure

    def noting(self, cell):
        seen.append((cell.name, cell.at))
        return measure(self, cell)

    monkeypatch.setattr(bench_module.Bench, "measure", noting)
    return seen


AFFINE = [name for name in SOLVERS if not name.startswith(("cld", "sscs"))]


@pytest.mark.parametrize("last", ["none", "denoise"])
@pytest.mark.parametrize("name", [name for name in AFFINE if SOLVERS[name]().evaluations_per_step])
def test_steps_are_the_most_that_a_budget_allows(name, last):
    sde = VP(t_min=1e-3)
    sampler = Sampler(solver=SOLVERS[name](), grid="karras", last=last)
    spent = lambda steps: evaluations(
        s := Sampler(solver=SOLVERS[name](), grid="karras", last=last, steps=steps), s.plan(sde)
    )
    for budget in (1, 2, 3, 5, 10, 31):
        cell = at_budget(name, sampler, sde, budget, StopRequest())
        if cell.skipped:
            assert spent(1) > budget
            assert f"one step takes {spent(1)} evaluations" in cell.skipped
        else:
            assert spent(cell.sampler.steps) <= budget < spent(cell.sampler.steps + 1)


def test_a_grid_that_has_too_few_steps_is_a_skipped_cell():
    sde = VP(t_min=0.9999, T=1.0)
    cell = at_budget("ddim", Sampler(solver=SOLVERS["ddim"]()), sde, 100_000, StopRequest())
    assert "float32 tells apart" in cell.skipped


def test_steps_of_a_budget_are_found_by_few_plans(monkeypatch):
    """Restarts that cost a thousand steps; and a signal ends the search."""
    restart, sde, counted = SOLVERS["restart"](repeats=(200,)), VP(t_min=1e-3), []
    plan = Sampler.plan
    monkeypatch.setattr(Sampler, "plan", lambda *arguments: (counted.append(1), plan(*arguments))[1])
    cell = at_budget("restart", Sampler(solver=restart, grid="log_snr"), sde, 1500, StopRequest())
    assert cell.sampler.steps == 150  # of 2, and the restarts' 200 · 3 · 2
    assert len(counted) < 6
    stop = StopRequest()
    stop.requested = "SIGTERM"
    with pytest.raises(Interrupted):
        at_budget("restart", Sampler(solver=restart), sde, 1500, stop)


def test_times_of_ones_own_are_reported_as_such(tmp_path):
    mine = ("--config.samplers.mine.solver=heun", "--config.samplers.mine.times=0.9,0.5,0.01")
    compare(tmp_path, *ON_RING, "--config.compare.samplers=mine", "--config.compare.seeds=1", *mine)
    (row,) = report_of(tmp_path)["cells"]
    assert (row["grid"], row["steps"], row["evaluations"]) == ("times", 2, 4)
    folder = tmp_path / "reports" / "compare"
    page, plots = (folder / "report.html").read_text(), list(folder.glob("*.png"))
    assert page.count("data:image/png") == len(plots) + 1 + 2
    assert 'alt="mine at its times"' in page
    (line,) = csv.DictReader((folder / "compare.csv").open())
    assert (line["grid"], line["steps"]) == ("times", "2")


def test_where_evaluations_are_not_all_counted_they_are_not_compared_by(tmp_path):
    """Those of Newton's iterations: the report says so, and ranks the cell by its seconds alone."""
    names = ("--config.compare.samplers=implicit,ddim", "--config.compare.nfe=1", "--config.compare.seeds=1")
    solver = ("--config.samplers.implicit.solver=ode", "--config.samplers.implicit.method=kvaerno5")
    settings = (*ON_RING, *names, *solver, "--config.samplers.ddim.last=none", "--config.compare.tolerance_factors=100")
    compare(tmp_path, *settings)
    report = report_of(tmp_path)
    row = row_of(report, "implicit", "tol x 100")
    assert (row["status"], row["all_counted"]) == ("done", False)
    assert row["scores"]["frechet"]["mean"] < row_of(report, "ddim", 1)["scores"]["frechet"]["mean"]
    assert row["pareto"]
    assert all(front.endswith("by seconds") for front in row["pareto"])
    assert f"≥ {row['evaluations']:.4g}" in (tmp_path / "reports" / "compare" / "report.html").read_text()
    compare(tmp_path, *settings, "--config.compare.samplers=implicit")  # nothing to plot by NFE


def test_every_cell_is_in_the_report(ring):
    report = report_of(ring)
    at = {name: ["3", "9"] for name in SAMPLERS.split(",")} | {"ode": ["tol x 100", "tol x 30"]}
    assert [(row["sampler"], row["at"]) for row in report["cells"]] == [(n, a) for n in at for a in at[n]]
    for row in report["cells"]:
        if (row["sampler"], row["at"]) == ("rk4", "3"):
            assert (row["status"], row["reason"]) == ("skipped", "one step takes 4 evaluations")
            continue
        assert row["status"] == "done"
        assert set(row["scores"]) == set(EXACT_METRICS)
        assert all(score["mean"] > 0 and score["spread"] > 0 for score in row["scores"].values())
        assert row["seconds"]["mean"] > 0 < row["images_per_second"]
        assert row["memory_bytes"] > 64
        assert (row["distance"] is None) == (row["sampler"] == "pc")
    assert row_of(report, "euler", 9)["evaluations"] == 9
    assert row_of(report, "rk4", 9)["evaluations"] == 8
    assert row_of(report, "pc", 9)["evaluations"] == 9  # four steps of two, and the last denoising
    assert report["seeds"] == [0, 1]


def test_the_converged_solution_is_what_solvers_come_to(ring):
    report = report_of(ring)
    distance = lambda name, at: row_of(report, name, at)["distance"]["mean"]
    for name in ("ddim", "euler", "dpmpp_2m"):
        assert distance(name, 9) < distance(name, 3)
    assert distance("ode", "tol x 30") < distance("ode", "tol x 100")
    assert report["reference_error"] < 1e-4 * distance("ddim", 9)


def test_linear_solvers_share_a_program(ring):
    report = report_of(ring)
    for name in ("ddim", "euler", "dpmpp_2m"):
        for at in (3, 9):
            row = row_of(report, name, at)
            assert row["program_of"] == "ddim at 3"
            assert (row["compile_seconds"] > 0) == ((name, at) == ("ddim", 3))
    assert row_of(report, "pc", 3)["compile_seconds"] > 0 == row_of(report, "pc", 9)["compile_seconds"]
    assert row_of(report, "ode", "tol x 100")["program_of"] == "ode at tol x 100"


def test_the_table_and_the_page_hold_the_same(ring):
    folder = ring / "reports" / "compare"
    report = report_of(ring)
    with (folder / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, report["cells"], strict=True):
        assert (line["sampler"], line["status"], line["command"]) == (row["sampler"], row["status"], row["command"])
        if row["status"] == "done":
            assert float(line["frechet"]) == row["scores"]["frechet"]["mean"]
            assert float(line["distance_spread"] or -1) == (row["distance"] or {"spread": -1})["spread"]
    page = (folder / "report.html").read_text()
    assert page.count("<tr class=") == len(lines) + 1  # and the baseline
    assert "one step takes 4 evaluations" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http" not in page
    plots = {path.name for path in folder.glob("*.png")}
    assert plots == {f"{m}_{cost}.png" for m in EXACT_METRICS for cost in ("nfe", "seconds")} | {"distance_nfe.png"}
    assert page.count("data:image/png") == len(plots) + sum(row["status"] == "done" for row in report["cells"]) + 2


def test_what_is_finished_is_not_done_again(ring, tmp_path, measured):
    shutil.copytree(ring, tmp_path / "w")
    fewer = ("--config.compare.nfe=4,9", "--config.compare.samplers=dpmpp_2m,ode")
    compare(tmp_path / "w", *ON_RING, *CELLS, *fewer)
    assert measured == [("dpmpp_2m", "4")]
    assert (
        row_of(report_of(tmp_path / "w"), "ode", "tol x 30")["scores"]
        == row_of(report_of(ring), "ode", "tol x 30")["scores"]
    )
    compare(tmp_path / "w", *ON_RING, *CELLS, *fewer, "--config.compare.seeds=1", "--config.compare.samplers=ddim")
    assert measured[1:] == [("ddim", "4"), ("ddim", "9")]
    only = report_of(tmp_path / "w")["cells"][0]["scores"]["frechet"]
    assert only["spread"] is None


def test_interrupted_it_goes_on(tmp_path, measured, monkeypatch):
    small = (*ON_RING, "--config.compare.samplers=ddim,euler", "--config.compare.nfe=2,3")
    run = bench_module.Bench._run
    calls = []

    def signalling(self, program, plan, seed, count):
        calls.append(seed)
        if len(calls) == 8:  # within the second cell: each runs two seeds, and the first the converged solution's four
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, program, plan, seed, count)

    monkeypatch.setattr(bench_module.Bench, "_run", signalling)
    compare(tmp_path, *small, status=75)
    assert measured == [("ddim", "2"), ("ddim", "3")]
    assert not (tmp_path / "reports" / "compare" / "report.html").exists()
    compare(tmp_path, *small)
    assert measured[2:] == [("ddim", "3"), ("euler", "2"), ("euler", "3")]
    assert all(row["status"] == "done" for row in report_of(tmp_path)["cells"])


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    run = bench_module.Bench._program
    broken = []

    def breaking(self, sampler, plan, made_for):
        if made_for in broken:
            raise ValueError("out of\nluck")
        return run(self, sampler, plan, made_for)

    monkeypatch.setattr(bench_module.Bench, "_program", breaking)
    broken.append("ddim at 3")
    settings = (
        *ON_RING,
        "--config.compare.samplers=ddim,pc",
        "--config.compare.nfe=3,4",
        "--config.samplers.pc.snr=1e30",
    )
    compare(tmp_path, *settings)
    report = report_of(tmp_path)
    assert row_of(report, "ddim", 3)["status"] == "failed"
    assert row_of(report, "ddim", 3)["reason"] == "ValueError: out of luck"
    assert row_of(report, "ddim", 4)["status"] == "done"
    assert "128 of 128 samples are not finite" in row_of(report, "pc", 4)["reason"]
    assert "ValueError: out of luck" in (tmp_path / "reports" / "compare" / "report.html").read_text()
    assert "ValueError: out of luck" in capsys.readouterr().out
    broken.clear()  # what raised is tried again
    compare(tmp_path, *settings)
    assert row_of(report_of(tmp_path), "ddim", 3)["status"] == "done"
    compare(tmp_path, *settings, "--config.compare.samplers=pc", status=1)


def test_a_command_makes_a_cell_of_an_oracle_again(ring):
    row = row_of(report_of(ring), "dpmpp_2m", 9)
    _, _, *arguments = shlex.split(row["command"])
    assert program.main(arguments) == 0
    again = report_of(ring.with_name(f"{ring.name}.partial_dpmpp_2m_9"))
    assert again["cells"][0]["scores"] == row["scores"]
    assert len(again["cells"]) == 1


def test_on_a_checkpoint(tmp_path_factory, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(program.finished_run(tmp_path_factory), workdir)
    chosen = ("--config.compare.samplers=dpmpp_2m,ode", "--config.compare.nfe=4", "--config.compare.num_samples=40")
    compare(workdir, *program.FINISHED, *SMALL, *chosen, "--config.evaluation.metrics=frechet")
    report = report_of(workdir)
    row = row_of(report, "dpmpp_2m", 4)
    assert row["evaluations"] == 4
    assert set(row["scores"]) == {"frechet"}
    assert report["metrics"]["frechet"]["baseline"]["mean"] > 0
    assert "checkpoint at step 8" in report["problem"]
    for name, at, made in (("dpmpp_2m", 4, "dpmpp_2m_4"), ("ode", "tol x 100", "ode_tolerance_100")):
        _, _, *arguments = shlex.split(row_of(report, name, at)["command"])
        assert program.main(arguments) == 0
        samples = np.load(workdir / "samples" / f"{made}.npz")["samples"]
        assert len(samples) == 40
        previews = [np.load(path) for path in (workdir / "reports" / "compare" / "cells").glob("*.npz")]
        previews = [arrays["preview"] for arrays in previews if "preview" in arrays]
        assert min(np.abs(samples[: len(each)] - each).max() for each in previews) < 1e-5


BAD = {
    "sampler": (["--config.compare.samplers=dpmp_2m"], ["unknown sampler 'dpmp_2m'", "did you mean", "'dpmpp_2m'"]),
    "oracle": (["--config.compare.oracle=rnig"], ["compare: unknown oracle 'rnig'", "did you mean 'ring'"]),
    "metric": (["--config.compare.metrics=recognition"], ["unknown metric 'recognition'", "frechet"]),
    "budget": (["--config.compare.nfe=5,0"], ["nfe must lie in [1, 1e5], not 0"]),
    "twice": (["--config.compare.nfe=5,5"], ["nfe must have at least one entry, each once"]),
    "tolerance": (["--config.compare.tolerance_factors=-1"], ["tolerance_factors must be positive, not -1"]),
    "several": (
        ["--config.compare.nfe=0", "--config.compare.seeds=0", "--config.sde.name=vpp"],
        ["nfe must", "seeds must lie in [1, 1000]", "unknown 'vpp'"],
    ),
    "solvers": (["--config.compare.samplers=sscs,ddim"], ["config: compare: sscs: this solver is for augmented"]),
    "grid": (
        ["--config.compare.samplers=ddim", "--config.samplers.ddim.grid=trailing"],
        ["compare: ddim: grid 'trailing' needs a process with steps"],
    ),
}


@pytest.mark.parametrize(("flags", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_answered_in_one_line(flags, words, tmp_path, capsys):
    assert program.main(program.flags(tmp_path / "w", "compare", "--config.compare.oracle=ring", *flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "w").exists()


def test_without_a_checkpoint_or_an_oracle_it_says_so(tmp_path, capsys):
    assert program.main(program.flags(tmp_path / "w", "compare")) == 2
    assert "run with --mode=train first" in capsys.readouterr().err


def test_exact_distances_of_a_moved_gaussian():
    oracle, move = gaussian(0.0, 0.5, (3,)), np.array([0.3, 0.0, -0.4])
    samples = oracle.sample(20_000, seed=0)
    law = Law(samples, Gaussian(oracle.mean(), oracle.covariance()))
    moved = samples + move
    # In every direction the two laws differ by θ·move alone, of which E (θ·move)² = |move|²/3.
    expected = np.sqrt(np.mean((move @ directions(3)) ** 2))
    np.testing.assert_allclose(EXACT_METRICS["sliced_wasserstein"].score(moved, law), expected, rtol=1e-9)
    np.testing.assert_allclose(expected, 0.5 / np.sqrt(3), rtol=3 / np.sqrt(DIRECTIONS))
    assert EXACT_METRICS["sliced_wasserstein"].score(samples[::4], law) < 0.03
    np.testing.assert_allclose(EXACT_METRICS["frechet"].score(moved, law), 0.25, rtol=0.02)
    np.testing.assert_allclose(EXACT_METRICS["frechet"].score(2 * samples, law), 3 * 0.5**2, rtol=0.03)


def test_the_pareto_front():
    cost, value = [1.0, 2.0, 3.0, 3.0, 4.0], [5.0, 6.0, 3.0, 2.0, 2.0]
    assert pareto(cost, value, "lower") == [0, 3]
    assert pareto(cost, value, "higher") == [0, 1]
    assert pareto([], [], "lower") == []


def test_the_usual_grid_is_one_that_the_process_has(tmp_path):
    config = digits.get_config().to_dict() | {"samplers": {}, "compare": {"samplers": ("unipc", "edm", "pc")}}
    made = lambda sde, **rest: samplers_of(build.build({**config, "sde": sde, **rest}, {}, tmp_path, ""))
    grids = lambda compared: [sampler.grid for sampler in compared.values()]
    assert grids(made({"name": "vp"})) == ["log_snr"] * 3
    assert grids(made({"name": "vp", "zero_terminal_snr": True})) == ["uniform"] * 3
    assert grids(made({"name": "cld"})) == ["uniform"] * 3
    own = made({"name": "vp"}, samplers={"unipc": {"grid": "cosine"}, "edm": {"churn": 3.0}})
    assert grids(own) == ["cosine", "log_snr", "log_snr"]
    with pytest.raises(UserError, match=r"samplers\.edm: churn"):
        made({"name": "vp"}, samplers={"edm": {"churn": -1.0}})
