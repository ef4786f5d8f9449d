"""--mode=plan: what it says of programs whose needs are known, and what it refuses."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from score_sde import build
from score_sde.distributed import slices, topology
from score_sde.distributed.chips import CHIPS, GIB
from score_sde.errors import RunFailed
from score_sde.experiment.planning import analysis, facts, search
from score_sde.experiment.planning.table import lines
from score_sde.training.interrupt import StopRequest
from tests import program

AXES = ("slice", "data", "fsdp", "tensor")


def plan(*arguments: str) -> list[str]:
    return [f"--config={program.CONFIG}", "--mode=plan", *program.TINY, *arguments]


def layout(sizes, *parameters):
    """Shapes with shardings on a mesh of these sizes, and the mesh."""
    mesh = AbstractMesh(sizes, AXES)
    of = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return [of(*each) for each in parameters], mesh


def test_least_of_data_parallelism():
    """2 P (n − 1)/n."""
    params, mesh = layout((1, 8, 4, 1), ((100, 10), P()), ((30,), P()))
    least = analysis.minimum(params, mesh, "float32", 1)
    assert least == pytest.approx({("all-reduce", ("data", "fsdp")): 2 * 4 * 1030 * 31 / 32})


def test_least_of_split_parameters():
    """Gathered twice, in bfloat16, and scattered once, in float32, by micro-batch; the mean over the rest once."""
    params, mesh = layout((1, 8, 4, 1), ((100, 10), P(None, "fsdp")))
    least = analysis.minimum(params, mesh, "bfloat16", 3)
    assert least == pytest.approx(
        {
            ("all-gather", ("fsdp",)): 3 * 2 * 2000 * 3 / 4,
            ("reduce-scatter", ("fsdp",)): 3 * 4000 * 3 / 4,
            ("all-reduce", ("data",)): 2 * 4000 / 4 * 7 / 8,
        }
    )


def test_least_between_slices():
    """Of each part of the mean, only its share of the chips of a slice crosses the network."""
    split, mesh = layout((3, 8, 4, 1), ((100, 10), P(None, "fsdp")))
    part = 4000 / 4
    least = analysis.minimum(split, mesh, "float32", 2)
    assert least == pytest.approx(
        {
            ("all-gather", ("fsdp",)): 2 * 2 * 4000 * 3 / 4,
            ("reduce-scatter", ("fsdp",)): 2 * 4000 * 3 / 4,
            ("reduce-scatter", ("data",)): part * 7 / 8,
            ("all-reduce", ("slice",)): 2 * part / 8 * 2 / 3,
            ("all-gather", ("data",)): part * 7 / 8,
        }
    )
    whole, mesh = layout((2, 1, 1, 1), ((100, 10), P()))
    assert analysis.minimum(whole, mesh, "float32", 1) == pytest.approx({("all-reduce", ("slice",)): 4000})


def test_least_with_tensor_parallelism():
    """A part of a parameter is gathered and reduced among those that hold the same part."""
    params, mesh = layout((1, 1, 4, 2), ((100, 10), P("tensor", "fsdp")))
    least = analysis.minimum(params, mesh, "float32", 1)
    assert least == pytest.approx({("all-gather", ("fsdp",)): 2 * 2000 * 3 / 4, ("reduce-scatter", ("fsdp",)): 1500})


def test_bytes_of_a_state():
    params, _ = layout((1, 8, 4, 2), ((100, 8), P("tensor", "fsdp")), ((30,), P()))
    assert analysis.state_bytes(params) == 4 * (100 * 8 / 8 + 30)


def axes(data, fsdp, tensor=1, slices=1):
    return {"slice": slices, "data": data, "fsdp": fsdp, "tensor": tensor}


def test_what_would_make_it_fit():
    options = {"mesh": axes(32, 2), "remat": "none", "per_chip": 8, "accumulate": 2}
    assert analysis.remedies(40.0, 10.0, 30.0, **options) == [
        "mesh.data=16 mesh.fsdp=4: parameters, averages and optimiser over as many chips"
    ]
    remat, batch = analysis.remedies(10.0, 50.0, 30.0, **options)
    assert remat.startswith("model.remat=matmuls or blocks")
    assert batch.startswith("training.accumulate=8: ")
    assert analysis.remedies(10.0, 50.0, 30.0, **{**options, "remat": None, "per_chip": 1})[0].startswith("more chips")


@pytest.mark.parametrize("mesh", [axes(16, 1), axes(4, 1, tensor=4), axes(4, 1, slices=4), axes(2, 4, 1, 2)])
def test_another_mesh_that_would_make_it_fit_is_one_of_the_same_devices(mesh):
    """Over four times as many chips; what the other axes take is not to be had."""
    options = {"mesh": mesh, "remat": None, "per_chip": 1, "accumulate": 1}
    (found,) = analysis.remedies(60.0, 1.0, 16.0, **options)
    if mesh["data"] < 4:
        assert found.startswith("more chips")
        return
    assert found.startswith(f"mesh.data={mesh['data'] // 4} mesh.fsdp={4 * mesh['fsdp']}: ")


def test_what_would_make_a_sampler_fit():
    """As many samples as all chips can divide; then the parameters over more of them."""
    assert analysis.sampling_remedies(2.0, 50.0, 30.0, mesh=axes(4, 1, tensor=2), batch=64) == [
        "sampling.batch_size=32: fewer samples at once"
    ]
    assert analysis.sampling_remedies(2.0, 50.0, 20.0, mesh=axes(3, 4), batch=60)[0].startswith(
        "sampling.batch_size=12"
    )
    assert analysis.sampling_remedies(40.0, 10.0, 30.0, mesh=axes(4, 1), batch=64) == [
        "mesh.data=2 mesh.fsdp=2: parameters over as many chips"
    ]
    assert analysis.sampling_remedies(40.0, 10.0, 30.0, mesh=axes(1, 4), batch=4)[0].startswith("more chips")


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (128.00G) exceeds available HBM (15.75G). HLO module: jit__lambda.",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 128.00G of "
        "15.75G hbm. Exceeded hbm capacity by 112.25G.",
    ],
)
def test_what_a_compiler_says_of_too_large_a_program(message):
    assert analysis._too_large(message) == (128 * GIB, 15.75 * GIB)


def test_a_plan_for_the_devices_here(capsys):
    assert program.main(plan()) == 0
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("plan for the devices here: 1 × cpu") for line in out)
    assert any("no estimate of time" in line for line in out)
    assert max(map(len, out)) <= 100


def test_it_is_kept_in_a_workdir(tmp_path):
    assert program.main(plan(f"--workdir={tmp_path / 'run'}")) == 0
    kept = json.loads((tmp_path / "run" / "reports" / "plan.json").read_text())
    assert (tmp_path / "run" / "reports" / "plan.txt").read_text().splitlines() == list(lines(kept))
    assert kept["chips"] == 1
    assert kept["chip_memory"] is None
    training = kept["training"]
    assert training["batch"] == 16
    assert training["sent"] == training["least"] == 0
    assert (
        sum(training["memory"][part] for part in ("arguments", "results", "temporaries", "code"))
        == (training["memory"]["peak"])
    )
    assert kept["sampling"]["passes"] > 0
    # the state and a batch, which layouts may pad: parameters, one average and Adam's two moments
    assert training["memory"]["arguments"] == pytest.approx(16 * kept["parameters"] + 16 * 64, rel=0.02)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("v9:2x2", "valid: v4, v5e, v5p, v6e"),
        ("4x4", "valid: v4, v5e, v5p, v6e"),
        ("v5e", "valid: 1x1, 2x2"),
        ("v5e:4", "valid: 1x1, 2x2"),
        ("v5e:4x", "valid: 1x1, 2x2"),
        ("v5e:3x3", "valid: 1x1, 2x2"),
        ("v5e:64x64", "16x16"),
        ("v5e:4x4x4", "16x16"),  # of three sides, which libtpu ends the process for
        ("v5p:4x4", "valid: 2x2x1, 2x2x2"),
    ],
)
def test_topologies_that_are_none(name, valid, refuse, tmp_path):
    says = refuse(plan(f"--config.plan.topology={name}"), tmp_path)
    assert f"topology={name}: " in says
    assert valid in says


@pytest.mark.parametrize("kind", slices.SLICES)
def test_topologies_that_there_are(kind, tpus):
    """libtpu knows each, with as many chips as its sides say."""
    for grid in slices.SLICES[kind]:
        assert len(tpus(f"{kind}:{grid}")) == math.prod(map(int, grid.split("x")))


def test_without_the_compiler(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    says = refuse(plan("--config.plan.topology=v5e:4x4"), tmp_path)
    assert "pip install -e '.[plan]'" in says


def test_a_topology_that_libtpu_does_not_know(refuse, tmp_path, tpus, monkeypatch):
    monkeypatch.setitem(slices.SLICES, "v5e", ("3x3",))
    assert "none that libtpu knows" in refuse(plan("--config.plan.topology=v5e:3x3"), tmp_path)


def test_a_batch_that_the_topology_does_not_divide(refuse, tmp_path, tpus):
    arguments = plan("--config.plan.topology=v5e:4x4", "--config.training.batch_size=24")
    assert "training.batch_size=24 is not divisible by the 16 devices" in refuse(arguments, tmp_path)


def test_other_tasks_are_not_planned(refuse, tmp_path):
    assert "sampling.task='generate'" in refuse(plan("--config.sampling.task=reconstruct"), tmp_path)


def test_other_modes_need_a_workdir(refuse, tmp_path):
    arguments = [each if each != "--mode=plan" else "--mode=train" for each in plan()]
    assert "--workdir is missing" in refuse(arguments, tmp_path)


def test_a_plan_for_tpus(tmp_path, tpus):
    """The gradient's mean is all that data parallelism sends; a sampler sends nothing."""
    arguments = plan("--config.plan.topology=v5e:2x2", f"--workdir={tmp_path / 'run'}")
    assert program.main(arguments) == 0
    kept = json.loads((tmp_path / "run" / "reports" / "plan.json").read_text())
    assert (kept["chips"], kept["chip"], kept["mesh"]) == (4, "v5e", {"data": 4})
    training, sampling = kept["training"], kept["sampling"]
    assert training["fits"]
    assert sampling["fits"]
    (row,) = training["collectives"]
    assert (row["kind"], row["axes"]) == ("all-reduce", ["data"])
    assert row["least"] == pytest.approx(2 * 4 * kept["parameters"] * 3 / 4)
    assert training["estimate"]["step"] > 0
    assert np.isclose(
        training["estimate"]["chip_hours"], 4 * training["estimate"]["step"] * training["estimate"]["steps"] / 3600
    )
    assert sum(each["sent"] for each in sampling["collectives"]) == 0


def test_a_plan_for_slices(tpus):
    """The gradient's mean crosses the network in parts, one a chip; what crosses takes its time."""
    flags = dict(each.removeprefix("--config.").split("=", 1) for each in program.TINY)
    flags |= {"plan.topology": "v5e:2x2", "mesh.slices": "2", "model.channels": "128"}
    planned = build.build(build.load_config(str(program.CONFIG)), flags, None, "", planned=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = facts.training(planned)
    rows = {(row["kind"], row["axes"]): row for row in found["collectives"]}
    between, size = rows["all-reduce", ("slice",)], 4 * planned.network.size()
    assert between["least"] == pytest.approx(size / 4)
    assert size / 4 <= between["sent"] < 1.1 * size / 4  # with what tiles pad
    assert found["estimate"]["exposed"] >= between["sent"] / CHIPS["TPU v5 lite"].network
    assert found["least"] == pytest.approx(size / 4 + 2 * size * 3 / 4)


def test_search(tmp_path, tpus):
    """Each mesh of four chips that divides two samples, the fastest that fits first, with the flags that choose it."""
    arguments = plan("--config.plan.topology=v5e:2x2", "--config.plan.search=True", f"--workdir={tmp_path / 'run'}")
    few = ("--config.training.batch_size=2", "--config.mesh.tensor=2", "--config.sampling.samplers=ddim")
    assert program.main([*arguments, *few]) == 0
    found = json.loads((tmp_path / "run" / "reports" / "plan.json").read_text())["search"]
    meshes = [tuple(row["overrides"][f"mesh.{axis}"] for axis in ("data", "fsdp", "tensor")) for row in found]
    assert set(meshes) == {(2, 1, 2), (1, 2, 2), (1, 1, 4)}
    assert {row["overrides"]["model.remat"] for row in found} == {"none", "matmuls", "blocks"}
    assert {row["overrides"]["training.accumulate"] for row in found} == {1}  # all fit
    seconds = [row["estimate"]["step"] for row in found]
    assert seconds == sorted(seconds)
    last = (tmp_path / "run" / "reports" / "plan.txt").read_text().splitlines()[-1]
    assert all(f"--config.{key}={value}" in last for key, value in found[0]["overrides"].items())


def searched(monkeypatch, outcomes):
    """A search whose candidates come out as said, in turn: seconds of a step, or why it failed."""

    def training(outcome):
        if isinstance(outcome, str):
            raise RunFailed(outcome)
        estimate = {"step": outcome, "images_per_second": 1, "utilisation": 1}
        return {"fits": True, "memory": {"peak": GIB}, "estimate": estimate}

    overrides = lambda number: {"mesh.fsdp": number, "training.accumulate": 1}
    candidates = [search.Candidate(outcome, overrides(number), number) for number, outcome in enumerate(outcomes)]
    monkeypatch.setattr(search, "_candidates", lambda experiment: candidates)
    monkeypatch.setattr(facts, "training", training)
    return search.search(None, StopRequest())


def test_a_candidate_that_the_compiler_fails_at_costs_no_other(monkeypatch):
    found = searched(monkeypatch, [2.0, "the compiler failed: why", 1.0, *[3.0] * 9])
    assert len(found) == search.COMPILED
    assert [row["estimate"]["step"] for row in found[:-1]] == [1.0, 2.0, *[3.0] * 5]
    shown = list(search.lines(found))
    assert shown[-3].split()[-1] == "failed"
    assert shown[-2] == "the compiler failed: why"
    assert shown[-1].startswith("the fastest that fits: ")


def test_a_search_where_every_candidate_fails(monkeypatch):
    """Says why, after as many as it compiles at least."""
    with pytest.raises(RunFailed, match=r"plan.search: the compiler failed: first"):
        searched(monkeypatch, ["the compiler failed: first", *["the compiler failed: why"] * 9])


def test_no_search_on_chips_of_which_nothing_is_known(refuse, tmp_path):
    assert "plan.search needs a plan.topology" in refuse(plan("--config.plan.search=True"), tmp_path)


def test_a_network_with_labels(tmp_path, tpus):
    """DiT, split over four chips: what is sent is what the layout asks for, or less."""
    config = program.ROOT / "configs" / "dit" / "imagenet256.py"
    small = ("model.depth=2", "model.width=256", "model.heads=4", "training.batch_size=64", "mesh.fsdp=4")
    arguments = [f"--config={config}:S/2", "--mode=plan", *(f"--config.{each}" for each in small)]
    run = tmp_path / "run"
    assert program.main([*arguments, "--config.plan.topology=v5e:2x2", f"--workdir={run}"]) == 0
    kept = json.loads((run / "reports" / "plan.json").read_text())
    assert kept["mesh"] == {"fsdp": 4}
    kinds = {row["kind"] for row in kept["training"]["collectives"]}
    assert "all-gather" in kinds
    assert 0 < kept["training"]["sent"] < 1.5 * kept["training"]["least"]
    assert any(row["kind"] == "all-gather" for row in kept["sampling"]["collectives"])


def test_what_does_not_fit(tmp_path, tpus, capsys):
    """A million images at once: by how much, and what may help."""
    sizes = ("model.channels=128", "training.batch_size=1000000", "sampling.batch_size=1000000")
    large = (*(f"--config.{each}" for each in sizes), "--config.sampling.samplers=ddim")
    run = tmp_path / "run"
    assert program.main(plan("--config.plan.topology=v5e:2x2", *large, f"--workdir={run}")) == 0
    kept = json.loads((run / "reports" / "plan.json").read_text())
    training, chip = kept["training"], kept["chip_memory"]
    assert not training["fits"]
    assert training["needed"] > chip
    out = capsys.readouterr().out
    over = (training["needed"] - chip) / GIB
    assert f"{over:.2f} GiB more than there are" in out
    assert "may help: model.remat=matmuls or blocks" in out
    parts = int(re.search(r"may help: training.accumulate=(\d+)", out)[1])
    assert training["needed"] / parts < chip
    sampling = kept["sampling"]
    assert not sampling["fits"]
    fewer = int(re.search(r"may help: sampling.batch_size=(\d+)", out)[1])
    assert sampling["needed"] * fewer / sampling["batch"] < chip
