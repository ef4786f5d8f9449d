"""scripts/launch: what a dry run prints is what is run, in its order; what is created; bad input."""

import re
import sys

import pytest

from score_sde.distributed import slices
from scripts.launch import common
from tests.launching import CASES, GKE, GPUS, MAIN, POD, SLURM, STAND_IN, Stage


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def dry(stage, arguments):
    """What a dry run prints."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    shown = stage.launch([*arguments[:end], "--dry-run", *arguments[end:]])
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_prints_what_is_run(stage, case):
    if case == "stop slurm":
        (stage.folder / "logs").mkdir()  # as `start` did
    before = sorted(stage.folder.rglob("*"))
    printed = dry(stage, CASES[case])
    assert sorted(stage.folder.rglob("*")) == before  # it runs nothing and leaves nothing
    assert stage.run(["bash", "-c", printed]).returncode == 0
    shown = stage.calls()
    done = stage.launch(CASES[case])
    assert done.returncode == 0, done.stderr
    assert stage.calls() == shown
    assert shown
    assert not list((stage.folder / "temporary").iterdir())


@pytest.mark.parametrize("case", ["install", "stop tpu", "stop slurm", "status gke"])
def test_the_first_failure_ends_it_with_its_status(stage, case):
    (stage.folder / "logs").mkdir()
    assert stage.launch(CASES[case], FAIL_AT="1").returncode == 7
    assert len(stage.calls()) == 1
    assert stage.launch(CASES[case], FAIL_AT="2").returncode == 7
    assert len(stage.calls()) == 2


def test_every_gcloud_command_says_what_and_where(stage):
    for case, arguments in CASES.items():
        if arguments[0] != "tpu":
            continue
        assert stage.launch(arguments).returncode == 0
        for argv, _ in stage.calls():
            assert {"--project=my-project", "--zone=us-west4-a"} <= set(argv), case
            assert any(each == "run-1" or each.startswith("run-1:") for each in argv), case
            queued = any(flag in arguments for flag in ("--queued", "--slices=2", "--slices=4"))
            assert argv[1:4] == ["compute", "tpus", "queued-resources" if queued else "tpu-vm"], case
            assert ("--node=all" in argv) == (queued and argv[4] in ("ssh", "scp")), case


def test_what_is_created(stage):
    stage.launch(CASES["create"])
    stage.launch(CASES["create slices"])
    (one, _), (four, _) = stage.calls()
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"} <= set(one)
    assert {"--node-count=4", "--node-prefix=run-1", "--accelerator-type=v5litepod-16"} <= set(four)
    assert "--spot" not in four


@pytest.mark.parametrize(
    ("text", "accelerator", "chips", "hosts"),  # as Google's documentation lists them
    [
        ("v4:2x2x1", "v4-8", 4, 1),
        ("v4:4x4x4", "v4-128", 64, 16),
        ("v5e:2x4", "v5litepod-8", 8, 1),
        ("v5e:4x4", "v5litepod-16", 16, 4),
        ("v5e:16x16", "v5litepod-256", 256, 64),
        ("v5p:8x8x16", "v5p-2048", 1024, 256),
        ("v6e:4x8", "v6e-32", 32, 8),
    ],
)
def test_topologies(text, accelerator, chips, hosts):
    topology = common.topology(text)
    assert (topology.accelerator_type, topology.chips, topology.hosts) == (accelerator, chips, hosts)


def test_sizes_name_one_topology():
    assert set(common.TPUS) == set(slices.SLICES)
    for name, shapes in slices.SLICES.items():
        kinds = [common.topology(f"{name}:{shape}").accelerator_type for shape in shapes]
        assert len(set(kinds)) == len(kinds)


def test_a_single_host_finds_nobody_and_may_use_its_own_disk(stage):
    """Of several, one that comes up alone ends instead: `--distributed=on`."""
    one = [*POD[:3], "--topology=v5e:2x4"]
    assert "--distributed=auto" in dry(stage, ["tpu", "start", *one, "--", MAIN[0], "--workdir=/home/me/a"])
    assert "--distributed=on" in dry(stage, ["tpu", "start", *one, "--slices=2", "--", *MAIN])


def test_a_value_may_follow_its_flag(stage):
    """As main.py takes it: what starts is the same."""
    apart = [part for each in MAIN for part in each.split("=", 1)]
    for launcher in (["tpu", "start", *POD], ["slurm", "start", *SLURM], ["kubernetes", "start", *GKE]):
        assert dry(stage, [*launcher, "--", *apart]) == dry(stage, [*launcher, "--", *MAIN])


BAD = {
    "no name": (["tpu", "create", *POD[1:]], "--name"),
    "a shell's name": (["tpu", "create", "--name=a;b", *POD[1:]], "--name"),
    "a generation": (["tpu", "create", *POD[:3], "--topology=v9:4x4"], "valid: v4, v5e, v5p, v6e"),
    "a shape": (["tpu", "create", *POD[:3], "--topology=v5e:3x3"], "valid: 1x1, 2x2"),
    "a zone": (["tpu", "create", *POD[:2], "--zone=us-west4", POD[3]], "us-west4-a"),
    "an action": (["tpu", "restart", *POD], "restart"),
    "a flag": (["tpu", "create", *POD, "--sport"], "--sport"),
    "gs as bucket": (["tpu", "install", *POD, "--bucket=gs://b"], "without gs://"),
    "a commit": (["tpu", "install", *POD, "--commit=nonsense"], "no commit"),
    "an option as commit": (["tpu", "install", *POD, "--commit=--all"], "--commit"),
    "git alone": (["tpu", "install", *POD, "--git=https://git.example/x.git"], "--commit"),
    "no arguments": (["tpu", "start", *POD], "--config=FILE is missing"),
    "gs workdir": (["tpu", "start", *POD, "--", MAIN[0], "--workdir=gs://b/a"], "mounted folder"),
    "relative workdir": (["slurm", "start", *SLURM, "--", MAIN[0], "--workdir=runs/a"], "absolute path"),
    "a host's own disk": (["tpu", "start", *POD, "--", MAIN[0], "--workdir=/tmp/a"], "/mnt/shared"),
    "a pod's own disk": (["kubernetes", "start", *GKE, "--", MAIN[0], "--workdir=/mnt/shared/../a"], "/mnt/shared"),
    "no such config": (["slurm", "start", *SLURM, "--", "--config=x.py", MAIN[1]], "x.py is no file"),
    "distributed apart": (["tpu", "start", *POD, "--", *MAIN, "--distributed", "off"], "set by the launcher"),
    "distributed": (["tpu", "start", *POD, "--", *MAIN, "--distributed=off"], "set by the launcher"),
    "expansion": (["tpu", "start", *POD, "--", *MAIN, "--config.seed=$HOME"], "no $"),
    "two lines": (["kubernetes", "start", *GKE, "--", *MAIN, "--config.seed=1\nEND_OF_INPUT"], "one line"),
    "arguments for stop": (["tpu", "stop", *POD, "--", *MAIN], "stop takes nothing"),
    "relative logs": (["slurm", "logs", "--name=a", "--logs=x"], "--logs"),
    "an sbatch line": (["slurm", "start", *SLURM, "--sbatch=--account=a b", "--", *MAIN], "--sbatch"),
    "no nodes": (["slurm", "start", *SLURM, "--nodes=0", "--", *MAIN], "--nodes"),
    "no storage": (["kubernetes", "start", "--name=a", "--image=i", GKE[3], "--", *MAIN], "--bucket or --claim"),
    "no hosts": (["kubernetes", "start", *GKE[:3], "--", *MAIN], "either --topology"),
    "both hosts": (["kubernetes", "start", *GKE, "--gpus-per-node=8", "--", *MAIN], "either --topology"),
    "slices of GPUs": (["kubernetes", "start", *GPUS, "--slices=2", "--", *MAIN], "--slices"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(stage, case):
    arguments, expected = BAD[case]
    result = stage.launch(arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert expected in result.stderr
    assert not stage.record.exists()


@pytest.mark.parametrize(
    ("case", "program"), [("create", "gcloud"), ("start slurm", "sbatch"), ("stop gke", "kubectl")]
)
def test_a_missing_program_is_named(stage, case, program):
    (stage.bin / program).unlink()
    for name in ("mkdir", "rm"):
        stage.program(name, STAND_IN)
    result = stage.launch(CASES[case], PATH=str(stage.bin))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {program} is not on the PATH; ")
    assert result.stderr.count("\n") == 1
    assert not stage.record.exists()


@pytest.mark.parametrize("launcher", ["tpu", "slurm", "kubernetes"])
def test_a_laptop_without_packages_will_do(stage, launcher):
    result = stage.run([sys.executable, "-S", f"scripts/launch/{launcher}", "--help"])
    assert result.returncode == 0, result.stderr
