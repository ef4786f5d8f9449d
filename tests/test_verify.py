"""--mode=verify: which results it lets pass. The orders themselves are measured by the mode."""

import dataclasses

import jax.numpy as jnp
import pytest

from score_sde.experiment import orders, verify
from score_sde.experiment.orders import Measured
from score_sde.oracles import Mixture
from score_sde.samplers import SOLVERS

CASE = verify.Case("", SOLVERS["ddim"](), orders.strong, 2.0)


@pytest.mark.parametrize(
    ("measured", "good"),
    [
        (Measured("strong", 1.9, 0.0, (), ()), True),
        (Measured("strong", 1.7, 0.0, (), ()), False),
        (Measured("strong", float("nan"), 0.0, (), ()), False),
        (Measured("paths", 1.7, 0.1, (), (), off=0.1, allowed=0.2), True),
        (Measured("paths", 1.9, 0.1, (), (), off=0.3, allowed=0.2), False),
        (Measured("paths", 0.1, 0.1, (), (), lost=True, off=0.1, allowed=0.2), True),
        (Measured("paths", 0.1, 0.1, (), (), lost=True, off=0.3, allowed=0.2), False),
        (Measured("paths", 2.0, 0.1, (), (), off=float("nan"), allowed=0.2), False),
    ],
)
def test_an_order_must_be_high_enough_and_the_result_right(measured, good):
    assert verify.good(CASE, measured) == good


def test_every_solver_is_measured_and_restart_with_steps_in_proportion():
    cases = verify.cases()
    assert {type(case.solver) for case in cases} == set(SOLVERS.values())
    restarts = {case.title: case.claim for case in cases if case.title.startswith("restart")}
    assert restarts == {"restart repeats=0": 2, "restart low=0.3 high=1.0, its steps in proportion": 2}


@pytest.fixture
def small(monkeypatch):
    for name, value in (("PATHS", 2**12), ("PATHS_OF_ADAPTIVE", 64), ("PATHS_OF_REFERENCE", 16)):
        monkeypatch.setattr(orders, name, value)
    monkeypatch.setattr(orders, "PATH_TOLERANCES", (0.1, 0.03))
    monkeypatch.setattr(orders, "REFERENCE", 0.01)


def half_the_score(monkeypatch):
    """The law of another equation: the score that a solver is told is half of what it is."""
    denoiser = Mixture.denoiser

    def wrong(self, sde):
        right = denoiser(self, sde)
        mean = lambda x, t: (x + sde.sigma(t)[:, None] ** 2 * 0.5 * right.score(x, t)) / sde.alpha(t)[:, None]
        return dataclasses.replace(right, function=lambda x, t, condition: mean(x, jnp.asarray(t)))

    monkeypatch.setattr(Mixture, "denoiser", wrong)


@pytest.mark.parametrize("name", ["adaptive_sde", "ancestral"])
def test_a_solver_of_another_equation_is_caught(name, small, monkeypatch):
    measure = orders.path_in_tolerance if name == "adaptive_sde" else orders.paths
    right = measure(SOLVERS[name]())
    assert right.off <= right.allowed
    half_the_score(monkeypatch)
    orders._follow.clear_cache()
    wrong = measure(SOLVERS[name]())
    orders._follow.clear_cache()
    assert wrong.off > 2 * wrong.allowed
