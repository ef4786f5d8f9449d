"""The tape that linear solvers are written on: random programs, executed as they read and through their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.samplers import LinearSolver, Plan, run
from score_sde.samplers.linear import MOST_REGISTERS, NO_NOISE, Tape, Vector, assemble, combine
from score_sde.samplers.schedule import Schedule
from score_sde.sde import VP
from tests import solving
from tests.solving import BIMODAL, LINEAR

SDE = VP(beta_max=6.0, t_min=0.05)
X = np.linspace(-1, 1, 4)


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=X.shape)


class Direct:
    """A tape that does at once what the other records: vectors are arrays, wrapped as the solvers handle them."""

    def __init__(self) -> None:
        self.start, self.drawn, self.evaluations = Value(X), 0, 0

    def evaluate(self, x, level):
        self.evaluations += 1
        data = solving.bimodal(x.array, level)
        return Value(data), Value((x.array - level.alpha * data) / level.sigma)

    def store(self, x):
        pass

    def noise(self):
        self.drawn += 1
        return Value(noise(self.drawn - 1))


class Value:
    def __init__(self, array):
        self.array = array

    def __add__(self, other):
        return Value(self.array + other.array)

    def __sub__(self, other):
        return Value(self.array - other.array)

    def __mul__(self, factor):
        return Value(factor * self.array)

    __rmul__ = __mul__

    def __truediv__(self, factor):
        return Value(self.array / factor)


def total(vectors):
    result = vectors[0]
    for vector in vectors[1:]:
        result = result + vector
    return result


def program(seed: int, evaluations: int):
    """What a solver might do: points, predictions and noises of any age, stored or not, unused or used again."""

    def solve(tape):
        choose = np.random.default_rng(seed)
        levels = Schedule.of(SDE).at(np.linspace(1.0, 0.05, evaluations))
        pool, x = [tape.start], tape.start
        for level in levels:
            for _ in range(choose.integers(0, 3)):
                pool.append(tape.noise())
            mixed = total([float(choose.normal()) * pool[i] for i in choose.integers(0, len(pool), 3)])
            x = 0.5 * x + 0.3 * mixed - 0.0 * pool[0]
            if choose.random() < 0.3:
                tape.store(x)
            if choose.random() < 0.3:  # what is stored may be made of what was stored just before
                x = x + 0.1 * pool[int(choose.integers(0, len(pool)))]
                tape.store(x)
            data, epsilon = tape.evaluate(x, level)
            pool = [*pool[-4:], data, epsilon, x] if choose.random() < 0.8 else [*pool[-4:], data]
            if choose.random() < 0.2:
                kept = pool[0] - data / 2.0
                tape.store(kept)
                pool.append(kept)
        mean = total([float(choose.normal()) * vector for vector in pool])
        return mean + 0.7 * tape.noise() if choose.random() < 0.5 else mean, mean

    return solve


def plan_of(solve) -> Plan:
    tape = Tape()
    x, mean = solve(tape)
    rows, start = assemble(tape, [x], [mean])
    return Plan.of(rows, np.array([1.0, 0.05]), start)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 10])
@pytest.mark.parametrize("seed", range(25))
def test_random_programs_do_what_they_say(seed, evaluations):
    solve = program(seed, evaluations)
    direct = Direct()
    x, mean = solve(direct)
    plan = plan_of(solve)
    assert plan.passes == direct.evaluations
    done = solving.execute(plan, SDE, solving.bimodal, X, noise)
    np.testing.assert_allclose(done[0], x.array, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(done[1], mean.array, rtol=1e-10, atol=1e-12)


def test_the_device_does_what_the_matrices_say():
    """The same programs on the loop's own matrices and draws, in float64."""
    keys = solving.keys_of(4)
    draw = jax.jit(lambda number: rng.normal(rng.child(keys, number), (1,), jnp.float64)[:, 0])
    for seed in range(2):
        plan = plan_of(program(seed, 3))
        with jax.enable_x64(True):
            drive = jax.jit(lambda plan, x: run(LINEAR, BIMODAL.denoiser(SDE), plan, x, keys))
            x = drive(plan, jnp.asarray(X)[:, None]).x
            drawn = lambda number: np.asarray(draw(number))
            expected, _ = solving.execute(plan, SDE, solving.bimodal, X, drawn)
        np.testing.assert_allclose(np.asarray(x)[:, 0], expected, rtol=1e-10, atol=1e-12)


def levels(count: int):
    return Schedule.of(SDE).at(np.linspace(1.0, 0.05, count))


def test_a_noise_used_in_two_steps_is_one_noise():
    def solve(tape):
        z, x = tape.noise(), tape.start
        for level in levels(4):
            tape.evaluate(x, level)
            x = x + z
        return x, x

    plan = plan_of(solve)
    drawn = np.concatenate([plan.start.noise, plan.rows.noise[: plan.passes].ravel()])
    assert list(drawn[drawn != NO_NOISE]) == [0]  # drawn once, kept after
    done, _ = solving.execute(plan, SDE, solving.bimodal, X, noise)
    np.testing.assert_allclose(done, X + 4 * noise(0), rtol=1e-12)


def test_a_noise_that_is_not_used_is_not_drawn():
    def solve(tape):
        x = tape.start
        for level in levels(3):
            tape.noise()
            data, _ = tape.evaluate(x, level)
            x = data + 0.0 * tape.noise()
        return x, x

    plan = plan_of(solve)
    assert plan.start.noise.shape == (0,)
    assert plan.rows.noise.shape[1] == 0


def test_registers_are_used_again():
    """What is read no more is kept no longer, however long the run."""
    for name, options, most in (
        ("ddim", {}, 2),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_3m", {}, 3),
        ("lms", {"order": 4}, 5),
        ("unipc", {"order": 3}, 5),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 4}, 6),
        ("rk4", {}, 8),
        ("edm", {"churn": 5.0}, 3),
    ):
        counts = {
            solving.plan_of(solving.solver_of(name, options), SDE, "uniform", steps).rows.matrix.shape[1]
            for steps in (10, 40, 160)
        }
        assert len(counts) == 1
        assert max(counts) <= most, (name, counts)


def test_rows_are_filled_up_and_counted():
    for steps in (1, 255, 256, 257):
        plan = solving.plan_of(LINEAR, SDE, "uniform", steps)
        assert plan.passes == steps
        assert {len(leaf) for leaf in plan.rows} == {256 if steps <= 256 else 512}
        assert plan.rows.matrix.dtype == plan.rows.t.dtype == np.float64
        np.testing.assert_array_equal(plan.times, [SDE.T, SDE.t_min])


def test_what_is_carried_and_never_stored_is_told():
    """A running sum of predictions, of which none is forgotten, needs a register each."""

    def solve(stored):
        def with_tape(tape):
            x = carried = tape.start
            for level in levels(3 * MOST_REGISTERS):
                data, _ = tape.evaluate(x, level)
                carried = carried + 0.1 * data
                if stored:
                    tape.store(carried)
                x = data
            return carried, carried

        return with_tape

    with pytest.raises(AssertionError, match=r"store\(\)"):
        plan_of(solve(False))
    direct, plan = Direct(), plan_of(solve(True))
    x, _ = solve(True)(direct)
    assert plan.rows.matrix.shape[1] <= 3
    np.testing.assert_allclose(solving.execute(plan, SDE, solving.bimodal, X, noise)[0], x.array, rtol=1e-10)


def test_an_evaluated_point_stands_for_the_state():
    """After an evaluation the vector is that point, and not the sum it was."""
    tape = Tape()
    x = tape.start + 2.0 * tape.noise()
    assert len(x.terms) == 2
    tape.evaluate(x, levels(2)[0])
    assert list(x.terms.values()) == [1.0]


def test_vectors_are_a_vector_space():
    a, b = Vector({1: 2.0}), Vector({1: 1.0, 2: -1.0})
    assert (a + b).terms == {1: 3.0, 2: -1.0}
    assert (a - 2 * b).terms == {1: 0.0, 2: 2.0}
    assert (b / 2).terms == {1: 0.5, 2: -0.5}
    assert (0.0 * b).terms == {}
    assert combine([1, -1], [a, a]).terms == {1: 0.0}
    with pytest.raises(ValueError, match="zip"):
        combine([1], [a, b])


def test_every_linear_solver_shares_the_loop():
    """So that what is compiled for one serves all; one that overrides it is compiled on its own by the batteries."""
    for solver in solving.SOLVERS.values():
        if issubclass(solver, LinearSolver):
            assert (solver.init, solver.step) == (LinearSolver.init, LinearSolver.step)
