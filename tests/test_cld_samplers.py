"""Solvers of critically damped Langevin diffusion, by the law of their output on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.augmented import AugmentedDenoiser
from score_sde.samplers.base import run
from score_sde.samplers.cld import SSCS, AugmentedEulerMaruyama, SSCSMidpoint, SymmetricSplitting
from score_sde.sde.cld import CLD
from tests import cld

SOLVERS = {"euler_maruyama": AugmentedEulerMaruyama(), "sscs": SSCS(), "sscs_midpoint": SSCSMidpoint()}
solver_case = pytest.mark.parametrize("solver", SOLVERS.values(), ids=list(SOLVERS))


def _output_law(solver, denoiser, start, grid, monkeypatch):
    """Mean and covariance of the output along the grid for a start N(*start), without Monte-Carlo error.

    A run is affine in the state and in each of its draws, so that its images of unit vectors are its matrix: one row
    of the batch is the image of nothing, two are those of the state, and one is that of each draw, which a `rng.normal`
    hands out by its number.
    """
    plan = solver.plan(denoiser.sde, grid)
    draws = 1 + max(int(plan.rows.noise.max()), int(np.max(plan.start.noise, initial=-1)))
    states = np.zeros((3 + draws, 2))
    states[1:3] = np.eye(2)
    units = jnp.asarray(np.concatenate([np.zeros((3, draws)), np.eye(draws)]))
    monkeypatch.setattr(rng, "child", lambda keys, number: number)
    monkeypatch.setattr(rng, "normal", lambda number, shape, dtype: units[:, number][:, None])
    rows = jax.tree.map(jnp.asarray, plan.rows)
    one = lambda number, carry: solver.step(denoiser, carry, jax.tree.map(lambda leaf: leaf[number], rows), units)
    loop = lambda z: jax.lax.fori_loop(0, plan.passes, one, solver.init(plan.start, z, units)).x
    out = np.asarray(jax.jit(loop)(jnp.asarray(states)))
    monkeypatch.undo()
    matrix, noise = (out[1:3] - out[:1]).T, (out[3:] - out[:1]).T
    return matrix @ start[0] + out[0], matrix @ start[1] @ matrix.T + noise @ noise.T


@solver_case
def test_weak_order(solver, monkeypatch):
    """Errors of the output's mean and covariance on a Gaussian, from the exact law at T, against the exact at t_min."""
    start, end = cld.exact(cld.MILD, cld.MILD.T), cld.exact(cld.MILD, cld.MILD.t_min)
    grids = [np.linspace(cld.MILD.T, cld.MILD.t_min, count + 1) for count in (40, 80, 160)]
    with jax.enable_x64(True):
        laws = [_output_law(solver, cld.denoiser(cld.MILD), start, grid, monkeypatch) for grid in grids]
    errors = [[np.abs(mean - end[0]).max(), np.abs(covariance - end[1]).max()] for mean, covariance in laws]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    print(f"\n{solver}: errors {errors}, slopes {slopes.tolist()}")
    # Between 80 and 160 steps the next order still adds to the slope a part of its size.
    assert np.all(np.abs(slopes[-1] - solver.convergence) < 0.15), (errors, slopes)


@solver_case
def test_the_loop_drives_the_solver(solver):
    sde, steps, count = CLD(), 20, 8
    denoiser, keys = cld.denoiser(sde), cld.keys(count, "run")
    grid = np.linspace(sde.T, sde.t_min, steps + 1)
    z_T = sde.prior_sample(rng.child(keys, 0), (1,))
    assert solver.stochastic
    plan, rules = solver.plan(sde, grid), ("none", "mean", "denoise")
    drive = jax.jit(lambda z, keys: [run(solver, denoiser, plan, z, keys, last=last) for last in rules])
    none, mean, denoise = drive(z_T, keys)
    assert none.x.shape == mean.x.shape == denoise.x.shape == (count, 1)
    assert np.all(none.evaluations == steps * solver.evaluations_per_step)
    assert np.all(denoise.evaluations == steps * solver.evaluations_per_step + 1)
    # Only the splitting's last draw reaches the position; D and the position differ by what t_min leaves, 0.0018.
    assert np.any(none.x != mean.x) == isinstance(solver, SymmetricSplitting)
    assert np.all(none.x != denoise.x)
    np.testing.assert_allclose(none.x, denoise.x, atol=0.02)
    alone = jax.jit(lambda z, keys: run(solver, denoiser, plan, z, keys))(z_T[3:4], keys[3:4])
    np.testing.assert_allclose(alone.x[0], none.x[3], rtol=1e-4, atol=1e-5)


def test_euler_without_noise_draws_none():
    solver, denoiser = AugmentedEulerMaruyama(eta=0.0), cld.denoiser(cld.MILD)
    assert not solver.stochastic
    plan = solver.plan(cld.MILD, np.linspace(cld.MILD.T, cld.MILD.t_min, 5))
    z_T = jnp.asarray([[0.3, -0.2]])
    one, other = (run(solver, denoiser, plan, z_T, cld.keys(1, name)).x for name in ("a", "b"))
    np.testing.assert_array_equal(one, other)


def test_an_equilibrium_step_of_the_splitting_is_exact(monkeypatch):
    """Data that are the prior, N(0, I), with γ = 1: S vanishes, and any number of steps keeps the law."""
    sde = CLD(gamma=1.0)
    start = np.zeros(2), np.diag([1, sde.mass])
    with jax.enable_x64(True):
        denoiser = AugmentedDenoiser(
            sde=sde, function=lambda z, t, _: -sde.velocity_of(z) / sde.mass, prediction="score"
        )
        grid = np.array([1.0, 0.4, 0.001])
        mean, covariance = _output_law(SSCS(), denoiser, start, grid, monkeypatch)
    np.testing.assert_allclose(mean, start[0], atol=1e-14)
    np.testing.assert_allclose(covariance, start[1], atol=1e-13)
