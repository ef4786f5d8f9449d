"""Averages by a power of the step, and those of other lengths made from their snapshots."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from score_sde.training import ema
from score_sde.training.posthoc import Snapshot, combine, inner_products
from tests import program
from tests.recorded import FIXTURES

LENGTHS = (0.01, 0.05, 0.1, 0.2, 0.25)
RECORDED = json.loads((FIXTURES / "edm2_posthoc.json").read_text())


def profile(snapshot: Snapshot):
    gamma, end = ema.exponent_of(snapshot.length), snapshot.step
    return lambda step: np.where(step <= end, (gamma + 1) / end * (step / end) ** gamma, 0.0)


def moment(function, end: float) -> float:
    return integrate.quad(function, 0, end, epsabs=0, epsrel=1e-13, limit=500)[0]


class TestProfile:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_its_standard_deviation_is_its_length(self, length):
        """Of the density p_γ on [0, 1], by quadrature; and back from the exponent."""
        density = profile(Snapshot(1, length))
        mean = moment(lambda u: u * density(u), 1)
        assert moment(density, 1) == pytest.approx(1, rel=1e-10)
        assert moment(lambda u: (u - mean) ** 2 * density(u), 1) ** 0.5 == pytest.approx(length, rel=1e-10)
        assert ema.length_of(ema.exponent_of(length)) == pytest.approx(length, rel=1e-12)

    def test_the_longest_is_the_mean_of_all(self):
        assert ema.exponent_of(ema.LONGEST) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("length", [*LENGTHS, ema.LONGEST])
    def test_each_step_weighs_what_the_profile_says(self, length):
        """(i/N)^{γ+1} − ((i − 1)/N)^{γ+1} of N updates; the initial parameters nothing."""
        count, profiles = 40, [ema.Power(length)]
        averages = ema.create({"w": jnp.full(count, 7.0)}, profiles)  # entry i is 1 at update i, and else 0
        for number in range(count):
            params = {"w": jnp.zeros(count).at[number].set(1.0)}
            averages = ema.update(averages, params, profiles, jnp.asarray(number + 1, jnp.int32))
        edges = (np.arange(count + 1) / count) ** (ema.exponent_of(length) + 1)
        np.testing.assert_allclose(averages[0]["w"], np.diff(edges), rtol=1e-5, atol=1e-7)

    def test_exponents_and_rates_are_those_published(self):
        for text, exponent in RECORDED["exponents"].items():
            assert ema.exponent_of(float(text)) == pytest.approx(exponent, rel=1e-12)
        for text, beta in RECORDED["beta"].items():
            rate = ema.Power(float(text)).rate(jnp.float32(300))
            assert float(rate) == pytest.approx(1 - beta, rel=1e-5)


class TestCombination:
    def test_inner_products_are_the_integrals(self):
        snapshots = [Snapshot(step, length) for step in (30, 100) for length in (0.05, 0.1, 0.25)]
        found = inner_products(snapshots, snapshots)
        for i, one in enumerate(snapshots):
            for j, two in enumerate(snapshots):
                p, q = profile(one), profile(two)
                product = moment(lambda step, p=p, q=q: p(step) * q(step), min(one.step, two.step))
                assert found[i, j] == pytest.approx(product, rel=1e-10), (one, two)

    @pytest.mark.parametrize("case", RECORDED["cases"])
    def test_coefficients_are_those_published(self, case):
        snapshots = [Snapshot(step, length) for step in case["steps"] for length in case["lengths"]]
        found = combine(snapshots, Snapshot(case["steps"][-1], case["length"]))
        np.testing.assert_allclose(found.coefficients, case["coefficients"], rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("count", [1, 8, 64])
    def test_a_profile_that_is_there_is_itself(self, count):
        snapshots = [Snapshot(100 * number, length) for number in range(1, count + 1) for length in (0.05, 0.1)]
        found = combine(snapshots, snapshots[-1])
        np.testing.assert_allclose(found.coefficients, np.arange(2 * count) == 2 * count - 1, atol=1e-9)
        assert found.error < 1e-7

    def test_the_error_is_that_of_the_profile(self):
        """By the integral of the squared difference; it falls as snapshots become more."""
        errors, wanted = [], Snapshot(1200, 0.13)
        for count in (2, 6):
            snapshots = [Snapshot(1200 * n // count, length) for n in range(1, count + 1) for length in (0.05, 0.1)]
            found = combine(snapshots, wanted)
            parts, target = [profile(each) for each in snapshots], profile(wanted)
            error = lambda u, c=found.coefficients, p=parts, q=target: (
                q(u) - sum(a * each(u) for a, each in zip(c, p, strict=True))
            )
            edges = sorted({0, *(each.step for each in snapshots)})
            between = itertools.pairwise(edges)
            squared = sum(integrate.quad(lambda u, f=error: f(u) ** 2, a + 1e-9, b)[0] for a, b in between)
            size = moment(lambda u, q=target: q(u) ** 2, wanted.step)
            assert found.error == pytest.approx((squared / size) ** 0.5, rel=1e-5)
            errors.append(found.error)
        assert errors[1] < errors[0] / 2


# --- through main.py ----------------------------------------------------------------------------------------------

STEPS, EVERY = 24, 2
TRAINING = (
    *program.TINY_TRAINING,
    "--config.optimiser.warmup=0 steps",
    "--config.training.ema_half_lives=",
    f"--config.training.ema_snapshot_every={EVERY} steps",
    "--config.sampling.samplers=ddim",
    *program.TINY_SAMPLING,
)
TRACKED = (*TRAINING, "--config.training.ema_lengths=0.05,0.1")


def duration(steps: int) -> str:
    return f"--config.training.duration={steps} steps"


def run(workdir, mode: str, *overrides: str) -> int:
    return program.main(program.flags(workdir, mode, *overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run that tracks 0.05 and 0.1, cut in two. Not to be changed."""
    path = tmp_path_factory.mktemp("trained") / "run"
    for steps in (9, STEPS):
        assert run(path, "train", *TRACKED, duration(steps)) == 0
    return path


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def final_state(workdir, *overrides):
    experiment = program.experiment(workdir, *overrides)
    checkpoints = experiment.open_checkpoints(read_only=True)
    try:
        return checkpoints.restore(experiment.abstract_state()).state
    finally:
        checkpoints.close()


def vector(params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def reconstructed(workdir, length: float) -> np.ndarray:
    return vector(program.experiment(workdir, *TRACKED, f"--config.evaluation.ema_length={length}").restore()[2])


def test_a_length_that_was_tracked_is_met(workdir, tmp_path, capsys):
    """The same training that tracks 0.13 too. By Cauchy and Schwarz the difference is at most the profile's error
    ‖p − Σ c p_i‖ times √(∫ |θ − θ_N|² dτ), and far less than what tells the average from the nearest that is kept."""
    other = (*TRAINING, "--config.training.ema_lengths=0.13")
    assert run(tmp_path / "direct", "train", *other, duration(STEPS)) == 0
    direct = final_state(tmp_path / "direct", *other)
    kept = final_state(workdir, *TRACKED)
    np.testing.assert_array_equal(vector(direct.params), vector(kept.params))
    capsys.readouterr()
    assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.13") == 0
    out = capsys.readouterr().out
    steps = sorted({*range(EVERY, STEPS + 1, EVERY), 9})
    assert f"length 0.13 at step {STEPS} from {len(steps)} snapshots" in out
    snapshots = [Snapshot(step, length) for step in steps for length in (0.05, 0.1)]
    error = combine(snapshots, Snapshot(STEPS, 0.13)).error
    assert f"relative error is {error:.1e}" in out
    found, expected = reconstructed(workdir, 0.13), vector(direct.ema[0])
    size = inner_products([Snapshot(STEPS, 0.13)], [Snapshot(STEPS, 0.13)])[0, 0] ** 0.5
    farthest = np.linalg.norm(vector(direct.params) - vector(program.experiment(workdir, *TRACKED).init_state().params))
    difference = np.linalg.norm(found - expected)
    assert difference < error * size * STEPS**0.5 * farthest + 1e-6 * np.linalg.norm(expected)
    assert difference < 0.02 * np.linalg.norm(vector(kept.ema[1]) - expected)
    assert difference < 1e-3 * np.linalg.norm(expected)


def test_what_is_kept_comes_back_and_may_end_earlier(workdir, tmp_path):
    """0.1 itself at the end and at an earlier snapshot, which is that of a training of so many steps."""
    for step, options in ((STEPS, ()), (9, ("--ema.step=9",))):
        assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.1", *options) == 0
        assert [path.name for path in (workdir / "ema" / "0.1").iterdir()] == [str(step)]
        if step == 9:
            assert run(tmp_path / "short", "train", *TRACKED, duration(9)) == 0
        whole = final_state(tmp_path / "short" if step == 9 else workdir, *TRACKED)
        np.testing.assert_allclose(reconstructed(workdir, 0.1), vector(whole.ema[1]), rtol=1e-6, atol=1e-7)


def test_a_training_anew_keeps_nothing_of_an_earlier_one(workdir, capsys):
    """Its checkpoints were removed: its snapshots would be combined with the new ones, and its average be there."""
    ema = (workdir, "ema", *TRACKED, duration(4), "--ema.length=0.1")
    assert run(*ema, "--ema.step=4") == 0
    shutil.rmtree(workdir / "checkpoints")
    assert run(workdir, "train", *TRACKED, duration(4)) == 0
    assert "there is no checkpoint, so ema_snapshots, ema of an earlier model went to" in capsys.readouterr().out
    assert {path.name for path in (workdir / "ema_snapshots").iterdir()} == {"2", "4"}
    assert run(*ema) == 0
    assert "already" not in capsys.readouterr().out
    assert (workdir / "earlier_1" / "ema_snapshots" / str(STEPS)).is_dir()


def test_an_interrupted_run_keeps_the_same_snapshots(trained, tmp_path):
    """And the same averages, bit for bit."""
    assert run(tmp_path, "train", *TRACKED, duration(STEPS)) == 0
    whole, resumed = (final_state(path, *TRACKED) for path in (tmp_path, trained))
    for one, two in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    names = [{path.name for path in (folder / "ema_snapshots").iterdir()} for folder in (tmp_path, trained)]
    assert names[0] == {str(step) for step in range(EVERY, STEPS + 1, EVERY)}
    assert names[1] == names[0] | {"9"}
    experiment = program.experiment(tmp_path, *TRACKED)
    target, found = experiment.abstract_state().ema, []
    for folder in (tmp_path, trained):
        snapshots = experiment.open_averages(folder / "ema_snapshots", read_only=True)
        found.append(vector(snapshots.restore_ema_at(14, target).params))
        snapshots.close()
    np.testing.assert_array_equal(*found)


def test_modes_use_it_and_work_is_known_by_it(workdir, capsys):
    asked = "--config.evaluation.ema_length=0.2"
    samples = []
    for overrides in ((), (asked,)):
        if overrides:
            assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.2") == 0
        assert run(workdir, "sample", *TRACKED, duration(STEPS), *overrides) == 0
        samples.append(np.load(workdir / "samples" / "ddim.npz")["samples"])
    assert (samples[0] != samples[1]).any()
    assert run(workdir, "export", *TRACKED, duration(STEPS), asked) == 0
    capsys.readouterr()
    assert run(workdir, "sample", *TRACKED, duration(STEPS), asked) == 0
    assert "ddim is done" in capsys.readouterr().out
    assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.2") == 0
    assert "already" in capsys.readouterr().out


REFUSED = {
    "no length": (("ema",), "--ema: length must be given and lie in (0, 0.2887], not 0"),
    "long": (("ema", "--ema.length=0.3"), "length must be given and lie in (0, 0.2887], not 0.3"),
    "no such step": (("ema", "--ema.length=0.1", "--ema.step=13"), "--ema.step=13 is none of the 13 snapshots"),
    "not made yet": (("sample", "--config.evaluation.ema_length=0.2"), "run with --mode=ema --ema.length=0.2 first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, workdir, refuse):
    (mode, *own), says = REFUSED[name]
    assert says in refuse(program.flags(workdir, mode, *TRACKED, duration(STEPS), *own), workdir)


def test_without_snapshots_it_is_refused(tmp_path, refuse):
    own = "--ema.length=0.1"
    assert "no snapshot in" in refuse(program.flags(tmp_path / "new", "ema", *TRACKED, own), tmp_path)
    line = refuse(program.flags(tmp_path / "new", "ema", *program.TINY, own), tmp_path)
    assert "needs training.ema_lengths" in line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_damaged_snapshot_is_named(workdir, capsys):
    for file in (workdir / "ema_snapshots" / "14").rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[10] ^= 1
        file.write_bytes(content)
    assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.2") == 2
    assert "ema_snapshots/14 is damaged" in capsys.readouterr().err
    shutil.rmtree(workdir / "ema_snapshots" / "14")
    assert run(workdir, "ema", *TRACKED, duration(STEPS), "--ema.length=0.2") == 0
