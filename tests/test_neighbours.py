"""Nearest neighbours and what is made of them: precision and recall, density and coverage, memorisation.

Other projects' numbers are in fixtures/metrics.npz, see record_metrics.py.
"""

import gc
import itertools
import math
import sys
import weakref

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from score_sde.evaluation import precision_recall
from score_sde.evaluation.distances import nearest, squared
from score_sde.evaluation.features import Features
from score_sde.evaluation.memorisation import memorisation
from score_sde.evaluation.metrics import Settings, score, take


def normal(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


# --- nearest neighbours, precision and recall ----------------------------------------------------------------------


def test_nearest_neighbours_are_scikit_learns(small_blocks):
    rows, queries = normal(50, 6), normal(23, 6, 1)
    found = nearest(queries, rows, 4)
    matrix = sklearn_metrics.pairwise_distances(queries, rows)
    np.testing.assert_array_equal(found.row, np.argsort(matrix, axis=1)[:, :4])
    np.testing.assert_allclose(found.distance, np.sort(matrix, axis=1)[:, :4], rtol=1e-12)
    np.testing.assert_allclose(squared(queries, rows), matrix**2, rtol=1e-9)
    own = nearest(rows, rows, 4, of_others=True)
    np.testing.assert_array_equal(own.row, np.argsort(sklearn_metrics.pairwise_distances(rows, rows), axis=1)[:, 1:5])


def test_equally_near_rows_come_in_their_order(small_blocks):
    """On a ring of integers, each four times, over several blocks."""
    rows = np.tile([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]], (5, 1))
    found = nearest(np.array([[0.0, 0.0], [0.0, 2.0]]), rows, 6)
    np.testing.assert_array_equal(found.row[0], np.arange(6))
    np.testing.assert_array_equal(found.row[1], [0, 4, 8, 12, 16, 1])
    np.testing.assert_array_equal(found.distance[1, :5], 1)


def test_a_copy_far_from_zero_lies_at_zero():
    rows = 1e6 + normal(30, 8)
    found = nearest(rows[5:8], rows, 2)
    np.testing.assert_array_equal(found.distance[:, 0], 0)
    np.testing.assert_array_equal(found.row[:, 0], [5, 6, 7])


@pytest.mark.parametrize("offset", [1e4, 1e5])
def test_neighbours_far_from_zero_are_those_near_it(offset):
    """Of steps that the offset can carry exactly, so that the distances are the same."""
    rows = np.random.default_rng(0).integers(-4000, 4000, (200, 3)) * 2.0**-20
    near, far = (nearest(each[:50], each, 5) for each in (rows, offset + rows))
    np.testing.assert_array_equal(near.row, far.row)
    np.testing.assert_array_equal(near.distance, far.distance)
    assert values(offset + rows[:100], offset + rows[100:]) == values(rows[:100], rows[100:])


LINE = np.arange(20.0)[:, None]  # the third neighbour of an inner point is 2 away, of the ends 3; the fifth 3, and 5


def values(generated, reference):
    return precision_recall.figures(generated, reference)


def test_balls_of_equal_sets(small_blocks):
    """Every inner ball holds its point and 3 on either side; a ball's border belongs to it."""
    precision, recall, density, coverage = values(LINE, LINE)
    assert precision == recall == coverage == 1
    radius = [5, 4, 3, *[3] * 14, 3, 4, 5]
    pairs = sum(abs(i - j) <= radius[j] for i, j in itertools.product(range(20), range(20)))
    assert density == pytest.approx(pairs / 20 / 5)


@pytest.mark.parametrize("dim", [16, 64, 2048])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_borders_belong_to_balls_whatever_rounding_says(dim, offset):
    """Of a set and itself, each ball holds its point and k others, the last on its border; of copies, all of them."""
    rows = (offset + normal(60, dim)).astype(np.float32)
    precision, recall, density, coverage = values(rows, rows.copy())
    assert precision == recall == coverage == 1
    assert density == pytest.approx(6 / 5, rel=1e-12)
    copies = np.repeat(rows[:50], 8, axis=0)
    precision, recall, density, coverage = values(copies, np.random.default_rng(1).permutation(copies))
    assert precision == recall == coverage == 1
    assert density == pytest.approx(8 / 5, rel=1e-12)


def test_balls_of_sets_far_apart():
    assert values(LINE, LINE + 1000) == (0, 0, 0, 0)


def test_balls_of_half_the_data_and_of_data_and_a_half():
    """All samples from one of two clusters: all precise, half recalled. The other way round: half, and all."""
    half, both = LINE, np.concatenate([LINE, LINE + 1000])
    precision, recall, _, coverage = values(half, both)
    assert (precision, recall, coverage) == (1, 0.5, 0.5)
    precision, recall, _, coverage = values(both, half)
    assert (precision, recall, coverage) == (0.5, 1, 1)


def test_an_outlier_is_in_a_large_ball_but_not_dense(small_blocks):
    """A real point at 100 has a ball that holds samples at 150: precise, and of 1 ball in 20 · 1/5 density."""
    real, generated = np.concatenate([LINE, [[100.0]]]), 150 + 0.1 * LINE
    precision, _, density, coverage = values(generated, real)
    assert precision == 1  # the third neighbour of 100 is 17, 83 away
    assert density == pytest.approx(1 / 5)
    assert coverage == pytest.approx(1 / 21)


def test_balls_of_other_projects(others):
    precision, recall, density, coverage = values(others["generated"], others["real"])
    assert (precision, recall) == pytest.approx(tuple(others["precision_recall"]), abs=1e-7)  # theirs are float32
    assert (density, coverage) == pytest.approx(tuple(others["density_coverage"]), rel=1e-12)


def test_remembered_figures_are_of_these_sets():
    """Not of others at the same place in memory."""
    rows = LINE.copy()
    assert values(rows, LINE)[0] == 1
    rows += 1000
    assert values(rows, LINE)[0] == 0


def test_the_four_figures_of_a_pair_are_made_together(monkeypatch):
    """In whatever order pairs and figures are asked for; and what is remembered keeps no rows."""
    made = []
    monkeypatch.setattr(
        precision_recall, "nearest", lambda rows, *rest, **more: (made.append(1), nearest(rows, *rest, **more))[1]
    )
    sets = [Features(normal(30, 5, 100 + seed)) for seed in range(3)]
    for name in ("precision", "recall", "density", "coverage"):
        for a, b in itertools.permutations(sets, 2):
            score(name, take(a, slice(0, 30)), take(b, np.arange(30)), Settings())
    assert len(made) == 3
    alive = weakref.ref(sets[0].features)
    del sets, a, b
    gc.collect()
    assert alive() is None


# --- memorisation --------------------------------------------------------------------------------------------------


def test_memorisation_of_copies():
    """Half of the samples are training records: these are found, named, and nearer than any test sample."""
    train, test = normal(200, 4), normal(100, 4, 1)
    generated = np.concatenate([train[30:60], normal(30, 4, 2)])
    found = memorisation(generated, test, train)
    np.testing.assert_array_equal(found.record[:30], np.arange(30, 60))
    np.testing.assert_array_equal(found.distance[:30], 0)
    np.testing.assert_array_equal(found.ratio[:30], 0)
    assert found.share.value >= 0.5
    assert found.copies >= 0.5
    assert found.test_copies < 0.1
    np.testing.assert_allclose(found.test_distance, sklearn_metrics.pairwise_distances(test, train).min(axis=1))
    assert found.quantiles()[0.5] == pytest.approx((np.median(found.distance), np.median(found.test_distance)))


def test_memorisation_looks_for_the_neighbours_of_test_data_once(monkeypatch):
    looked_at = []
    count = lambda rows, *rest, **more: (looked_at.append(len(rows)), nearest(rows, *rest, **more))[1]
    monkeypatch.setattr(sys.modules["score_sde.evaluation.memorisation"], "nearest", count)
    train, test = normal(50, 4, 7), normal(20, 4, 8)
    for seed in (9, 10, 9):
        memorisation(normal(30, 4, seed), test, train)
    assert looked_at == [30, 20, 30]


def test_memorisation_of_the_datas_law_is_the_quantile():
    """Share 5 %, and the bootstrap's error is the spread over draws, the training data being the same."""
    train, draw = normal(300, 3), lambda seed: normal(200, 3, 1 + seed)
    each = [memorisation(draw(2 * seed), draw(2 * seed + 1), train, seed).share for seed in range(60)]
    shares, errors = np.array(each).T
    assert abs(shares.mean() - 0.05) < 3.5 * shares.std(ddof=1) / math.sqrt(60) + 1 / 200
    assert errors.mean() == pytest.approx(shares.std(ddof=1), rel=0.3)


def test_records_twice_in_the_training_data_are_their_own_second_nearest():
    train = np.concatenate([LINE, LINE])
    found = memorisation(LINE[:4], LINE + 0.4, train)
    np.testing.assert_array_equal(found.ratio, 1)
    np.testing.assert_array_equal(found.distance, 0)
    assert found.share.value == 1
