"""Solvers of critically damped Langevin diffusion, by the law of their output on Gaussian data."""

import itertools

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

DRAWS = {AugmentedEulerMaruyama: [1], SSCS: [2, 2], SSCSMidpoint: [2, 2]}


def _output_laws(solver, start, grids, monkeypatch):
    """Mean and covariance of the output along each grid for a start N(*start), without Monte-Carlo error.

    A step is affine in the state and its noise, so that its images of unit vectors are its matrix. Noise is fed in by
    a `rng.normal` that hands out the unit vectors of each draw in turn.
    """
    sizes = DRAWS[type(solver)]
    columns = sum(sizes)
    rows = 3 + columns
    states = np.zeros((rows, 2))
    states[1:3] = np.eye(2)
    units = np.zeros((rows, columns))
    units[3:] = np.eye(columns)
    supply = [jnp.asarray(part) for part in np.split(units, np.cumsum(sizes)[:-1], axis=1)]
    calls = []

    def normal(keys, shape, dtype=None):
        noise = supply[len(calls) % len(supply)]
        calls.append(shape)
        assert noise.shape[1:] == shape
        return noise

    monkeypatch.setattr(rng, "normal", normal)

    @jax.jit
    def step(carry, keys, mean, covariance, t, s):
        ones = jnp.ones(rows)
        out = solver.step(carry, t * ones, s * ones, keys).x
        matrix, noise = (out[1:3] - out[:1]).T, (out[3:] - out[:1]).T
        return matrix @ mean + out[0], matrix @ covariance @ matrix.T + noise @ noise.T

    laws, keys = [], cld.keys(rows)
    for grid in grids:
        carry, law = solver.init(jnp.asarray(states), grid), start
        for t, s in itertools.pairwise(grid):
            law = step(carry, keys, *law, t, s)
        laws.append(tuple(map(np.asarray, law)))
    monkeypatch.undo()
    return laws


@pytest.mark.parametrize("solver", [AugmentedEulerMaruyama, SSCS, SSCSMidpoint], ids=lambda solver: solver.__name__)
def test_weak_order(solver, monkeypatch):
    """Errors of the output's mean and covariance on a Gaussian, from the exact law at T, against the exact at t_min."""
    start, end = cld.exact(cld.MILD, cld.MILD.T), cld.exact(cld.MILD, cld.MILD.t_min)
    grids = [np.linspace(cld.MILD.T, cld.MILD.t_min, count + 1) for count in (40, 80, 160)]
    with jax.enable_x64(True):
        laws = _output_laws(solver(denoiser=cld.denoiser(cld.MILD)), start, grids, monkeypatch)
    errors = [[np.abs(mean - end[0]).max(), np.abs(covariance - end[1]).max()] for mean, covariance in laws]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    print(f"\n{solver.__name__}: errors {errors}, slopes {slopes.tolist()}")
    # Between 80 and 160 steps the next order still adds to the slope a part of its size.
    assert np.all(np.abs(slopes[-1] - solver.order) < 0.15), (errors, slopes)


@pytest.mark.parametrize("solver", [AugmentedEulerMaruyama, SSCS, SSCSMidpoint], ids=lambda solver: solver.__name__)
def test_the_loop_drives_the_solver(solver):
    sde, steps, count = CLD(), 20, 8
    solver, keys = solver(denoiser=cld.denoiser(sde)), cld.keys(count, "run")
    grid = np.linspace(sde.T, sde.t_min, steps + 1)
    z_T = sde.prior_sample(rng.child(keys, 0), (1,))
    assert solver.stochastic
    drive = jax.jit(lambda z, keys: [run(solver, z, grid, keys, last=last) for last in ("none", "mean", "denoise")])
    none, mean, denoise = drive(z_T, keys)
    assert none.x.shape == mean.x.shape == denoise.x.shape == (count, 1)
    assert np.all(none.evaluations == steps * solver.evaluations_per_step)
    assert np.all(denoise.evaluations == steps * solver.evaluations_per_step + 1)
    # Only the splitting's last draw reaches the position; D and the position differ by what t_min leaves, 0.0018.
    assert np.any(none.x != mean.x) == isinstance(solver, SymmetricSplitting)
    assert np.all(none.x != denoise.x)
    np.testing.assert_allclose(none.x, denoise.x, atol=0.02)
    alone = jax.jit(lambda z, keys: run(solver, z, grid, keys))(z_T[3:4], keys[3:4])
    np.testing.assert_allclose(alone.x[0], none.x[3], rtol=1e-4, atol=1e-5)


def test_euler_without_noise_draws_none():
    solver = AugmentedEulerMaruyama(denoiser=cld.denoiser(cld.MILD), eta=0.0)
    assert not solver.stochastic
    grid, z_T = np.linspace(cld.MILD.T, cld.MILD.t_min, 5), jnp.asarray([[0.3, -0.2]])
    one, other = (run(solver, z_T, grid, cld.keys(1, name)).x for name in ("a", "b"))
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
        ((mean, covariance),) = _output_laws(SSCS(denoiser=denoiser), start, [grid], monkeypatch)
    np.testing.assert_allclose(mean, start[0], atol=1e-14)
    np.testing.assert_allclose(covariance, start[1], atol=1e-13)
