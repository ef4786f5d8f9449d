"""Every draw is a function of (seed, name, step, sample index), and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from score_sde import rng

DRAWS = [rng.normal, rng.uniform, rng.rademacher]
draw = pytest.mark.parametrize("draw", DRAWS, ids=lambda function: function.__name__)


def _data(key):
    return np.asarray(jax.random.key_data(key))


def test_streams_differ_by_name_and_seed():
    keys = [rng.stream(seed, name) for seed in (0, 1) for name in ("train", "sample", "data")]
    assert len({_data(key).tobytes() for key in keys}) == 6
    np.testing.assert_array_equal(_data(rng.stream(0, "train")), _data(keys[0]))


def test_steps_and_children_differ():
    root = rng.stream(0, "train")
    steps = [rng.at_step(root, step) for step in range(4)] + [root]
    assert len({_data(key).tobytes() for key in steps}) == 5
    keys = rng.for_samples(root, jnp.arange(5))
    every = np.concatenate([_data(rng.child(keys, number)) for number in range(4)] + [_data(keys)])
    assert len(np.unique(every, axis=0)) == 25


def test_a_step_may_be_traced():
    root = rng.stream(0, "train")
    traced = jax.jit(lambda step: rng.at_step(root, step))(jnp.asarray(7))
    np.testing.assert_array_equal(_data(traced), _data(rng.at_step(root, 7)))


@draw
def test_a_samples_draw_is_its_own(draw):
    """The same bits alone, in any batch, at any place of it, and under jit."""
    root = rng.stream(3, "noise")
    together = draw(rng.for_samples(root, jnp.arange(10)), (2, 3))
    np.testing.assert_array_equal(draw(rng.for_samples(root, jnp.asarray([7])), (2, 3))[0], together[7])
    np.testing.assert_array_equal(
        draw(rng.for_samples(root, jnp.asarray([9, 7, 0])), (2, 3)), np.asarray(together)[[9, 7, 0]]
    )
    np.testing.assert_array_equal(jax.jit(lambda k: draw(k, (2, 3)))(rng.for_samples(root, jnp.arange(10))), together)
    assert together.shape == (10, 2, 3)
    assert together.dtype == jnp.float32


@pytest.mark.parametrize(("draw", "law"), [(rng.normal, "norm"), (rng.uniform, "uniform")], ids=["normal", "uniform"])
def test_laws(draw, law):
    """Kolmogorov-Smirnov over draws of many samples, and correlation between neighbours."""
    values = np.asarray(draw(rng.for_samples(rng.stream(0, "law"), jnp.arange(1000)), (4,)), np.float64)
    assert scipy.stats.kstest(values.ravel(), law).pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 5 / np.sqrt(values.size)


def test_rademacher_is_plus_or_minus_one():
    values = np.asarray(rng.rademacher(rng.for_samples(rng.stream(0, "law"), jnp.arange(1000)), (4,)))
    assert set(np.unique(values)) == {-1.0, 1.0}
    assert abs(values.mean()) < 5 / np.sqrt(values.size)


@pytest.mark.parametrize(
    ("draw", "theirs"),
    [(rng.normal, jax.random.normal), (rng.uniform, jax.random.uniform), (rng.rademacher, jax.random.rademacher)],
    ids=["normal", "uniform", "rademacher"],
)
def test_numbers_are_those_of_jax(draw, theirs):
    """Bit for bit, though they are drawn in a row."""
    keys = rng.for_samples(rng.stream(0, "noise"), jnp.arange(3))
    for key, own in zip(keys, draw(keys, (2, 3, 5)), strict=True):
        np.testing.assert_array_equal(own, theirs(key, (2, 3, 5), dtype=jnp.float32))
