"""Metrics on sets whose answer is known, and the levels of discrete data."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from score_sde import rng
from score_sde.data import Levels
from score_sde.errors import UserError
from score_sde.evaluation.features import Features
from score_sde.evaluation.frechet import between_gaussians, frechet_distance
from score_sde.evaluation.halves import Halves, noise_images
from score_sde.evaluation.metrics import METRICS, Settings, Train
from score_sde.evaluation.moments import Gaussian, Moments
from score_sde.evaluation.recognition import NEIGHBOURS, Recogniser
from score_sde.evaluation.value import Value


def normal(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


def _set(mean, covariance, count=40, seed=0):
    """Rows whose sample mean and sample covariance are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw, rowvar=False)))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def _covariance(dim, seed):
    root = np.random.default_rng(seed).normal(size=(dim, dim))
    return root @ root.T + 0.1 * np.eye(dim)


# --- Fréchet distance ----------------------------------------------------------------------------------------------


def test_frechet_distance_of_diagonal_gaussians():
    """Σ (m − n)² + (√a − √b)²."""
    m, n = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 0.5, 0.25])
    expected = ((m - n) ** 2 + (np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(_set(m, np.diag(a)), _set(n, np.diag(b), 55, 1)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    """With the principal square root of Σ₁ Σ₂ (the formula of Heusel et al.), by Schur decomposition."""
    a, b, m, n = _covariance(5, 0), _covariance(5, 1), np.arange(5.0), np.ones(5)
    cross = np.trace(np.real(scipy.linalg.sqrtm(a @ b)))
    expected = ((m - n) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(_set(m, a), _set(n, b, 70, 1)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_under_a_shared_rotation_and_scale():
    a, b = _set(np.zeros(4), _covariance(4, 0)), _set(np.ones(4), _covariance(4, 1))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    assert frechet_distance(3 * a @ rotation, 3 * b @ rotation) == pytest.approx(9 * frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_is_a_distance():
    a, b = _set(np.zeros(4), _covariance(4, 0)), _set(np.ones(4), _covariance(4, 1))
    scale = np.trace(_covariance(4, 0))
    assert abs(frechet_distance(a, a)) < 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, a + 0.1) == pytest.approx(4 * 0.1**2, rel=1e-6)


def test_frechet_distance_of_singular_sets():
    """Fewer rows than dimensions, and a constant pixel: the root of a zero eigenvalue is zero."""
    a = np.random.default_rng(0).normal(size=(5, 12))
    a[:, 3] = 1.0
    # The root of an eigenvalue that is 1e-16 instead of 0 is 1e-8.
    assert abs(frechet_distance(a, a)) < 1e-6
    assert frechet_distance(a, a + 2) == pytest.approx(12 * 4, rel=1e-6)


def test_frechet_distance_of_one_feature():
    a, b = _set(np.zeros(1), np.eye(1)), _set(np.full(1, 3.0), 4 * np.eye(1))
    assert frechet_distance(a, b) == pytest.approx(9 + 1, rel=1e-9)


def test_frechet_distance_of_rank_deficient_gaussians():
    """Of one eigenbasis, half of it shared: Σ (√a − √b)², to 1e-6 however many zeros there are."""
    dim = 300
    basis = np.linalg.qr(normal(dim, dim))[0]
    a, b = np.zeros(dim), np.zeros(dim)
    a[:40], b[20:60] = np.random.default_rng(1).uniform(0.1, 9, size=(2, 40))
    one, other = (Gaussian(np.zeros(dim), (basis * values) @ basis.T) for values in (a, b))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert between_gaussians(one, other) == pytest.approx(expected, rel=1e-9)
    full = Gaussian(np.zeros(dim), basis @ basis.T)
    assert between_gaussians(one, full) == pytest.approx(((np.sqrt(a) - 1) ** 2).sum(), rel=1e-9)


def test_frechet_distance_of_fewer_samples_than_features():
    """The cross term is ‖X Yᵀ‖_* of the centred rows, which needs no covariance."""
    x, y = normal(30, 200), 0.5 + normal(40, 200, 1) * np.linspace(0, 2, 200)
    centred = lambda rows: (rows - rows.mean(axis=0)) / math.sqrt(len(rows) - 1)
    a, b = centred(x), centred(y)
    shift = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    expected = shift + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    both = (Moments.of(rows).gaussian() for rows in (x, y))
    assert between_gaussians(*both) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(x, normal(300, 200)) == pytest.approx(frechet_distance(normal(300, 200), x), rel=1e-10)
    # Of a set and the same, scaled: (1 − c)² tr Σ, though it is 1e-6 of the traces.
    mean = x.mean(axis=0)
    scaled = mean + 1.001 * (x - mean)
    assert frechet_distance(x, scaled) == pytest.approx(1e-6 * (a**2).sum(), rel=1e-6)
    assert abs(frechet_distance(x, x)) < 1e-12 * (a**2).sum()


def test_frechet_distance_of_more_features_than_a_covariance_fits():
    """Pixels of 256×256: a covariance would take 309 GB. A shift and a scale of one set, in closed form."""
    x = normal(12, 256 * 256 * 3)
    moved = 0.25 + 1.5 * x
    mean, trace = x.mean(axis=0), x.var(axis=0, ddof=1).sum()
    expected = ((0.25 + 0.5 * mean) ** 2).sum() + 0.25 * trace
    assert frechet_distance(x, moved) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [40, 700])
def test_frechet_distance_of_nearly_flat_sets(n):
    """A set of samples and the same with each feature scaled by c_j: what is small in one is not lost in the other.

    The rows are orthogonal, so that covariances are diagonal and the distance is Σ (c_j − 1)² Var_j.
    """
    dim = 32
    x = np.linalg.qr(normal(n, dim) - normal(n, dim).mean(axis=0))[0]
    x = np.linalg.qr(x - x.mean(axis=0))[0]  # of mean 0, to rounding
    scale = np.where(np.arange(dim) % 2, 1.0, 1e-8)
    expected = (scale - 1) ** 2 @ (x.var(axis=0, ddof=1))
    assert frechet_distance(x, x * scale) == pytest.approx(expected, rel=1e-12)


def test_what_is_no_covariance_is_refused():
    """No root of it is complex, or cut off in silence."""
    wrong = Gaussian(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(UserError, match="not a covariance: an eigenvalue is -1"):
        between_gaussians(wrong, Gaussian(np.zeros(2), np.eye(2)))


def test_frechet_distance_of_other_projects(others):
    for name in ("frechet", "frechet_pytorch_fid"):
        expected = float(others[name])
        assert frechet_distance(others["generated"], others["real"]) == pytest.approx(expected, rel=1e-9)


# --- moments -------------------------------------------------------------------------------------------------------


def test_moments_are_the_mean_and_the_covariance(small_blocks):
    rows = 1e4 + normal(50, 4)  # far from 0
    mean, covariance = Moments.of(rows).gaussian()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-11)


@pytest.mark.parametrize("sizes", [(50,), (1, 49), (13, 1, 30, 6)])
def test_merged_parts_are_the_whole(sizes):
    rows = (1e3 + normal(50, 4)).astype(np.float32)
    parts = [Moments.of(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    whole, merged = Moments.of(rows), Moments.merged(parts)
    assert merged.count == 50
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-11)
    again = Moments.merged(parts)
    np.testing.assert_array_equal(merged.scatter, again.scatter)


def test_one_row_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 samples, not 1"):
        frechet_distance(normal(1, 3), normal(9, 3))


# --- recognition ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clusters():
    """Two classes of 50 points around 0 and around (10, 0)."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(100, 2)) * 0.5
    points[50:, 0] += 10
    return points, np.repeat([3, 8], 50)


def test_members_pass_and_strangers_do_not(clusters):
    recogniser = Recogniser.fit(*clusters)
    inside = np.array([[0.0, 0.0], [10.0, 0.1], [0.1, -0.2]])
    outside = np.array([[5.0, 0.0], [0.0, 7.0], [30.0, 0.0]])
    assert recogniser.recognised(inside).all()
    assert not recogniser.recognised(outside).any()


def test_a_blend_of_two_classes_is_not_recognised():
    """Both classes at one place: near enough, but of two classes."""
    points = np.random.default_rng(0).normal(size=(200, 2))
    mixed = Recogniser.fit(points, np.arange(200) % 2)
    single = Recogniser.fit(points, np.zeros(200, int))
    # A chance of 2^−4 each that five neighbours agree.
    assert mixed.recognised(points / 2).mean() < 0.2
    assert single.recognised(points / 2).mean() == 1


def test_the_threshold_is_the_95th_percentile_of_own_distances():
    """On a line the five nearest others of an inner point are at 1, 1, 2, 2, 3, of an end at 1 … 5."""
    line = np.arange(1000.0)[:, None]
    recogniser = Recogniser.fit(line, np.zeros(1000, int))
    assert NEIGHBOURS == 5
    assert recogniser.threshold == pytest.approx(9 / 5, rel=1e-6)
    # Between two points: ½, ½, 1½, 1½, 2½, mean 1.3; 0.7 beyond the end: 0.7, 1.7, …, mean 2.7.
    np.testing.assert_array_equal(recogniser.recognised(np.array([[500.5], [999.7]])), [True, False])


# --- scores --------------------------------------------------------------------------------------------------------


def rows(*values):
    return Features(np.array(values, np.float32)[:, None])


def test_scores_are_means_over_whole_sets(monkeypatch):
    """With the metric "mean of the images minus mean of the part" the answers are by hand."""
    difference = lambda images, part, *_: Value(float(images.features.mean() - part.features.mean()))
    monkeypatch.setitem(METRICS, "difference", METRICS["frechet"]._replace(score=difference))
    halves = Halves((rows(1, 1), rows(3, 3)), Settings())
    result = halves.score("difference", rows(2, 4, 6, 8, 100))  # two sets of two, and one left over
    assert result.value == pytest.approx(((3 - 2) + (7 - 2)) / 2)
    assert result.spread == pytest.approx(np.std([1, 5], ddof=1))
    assert halves.score("difference", rows(2, 4, 6)).spread is None
    assert halves.score("difference", rows(2)).value is None
    assert halves.floor("difference").value == pytest.approx(0)


def test_the_halves_are_disjoint_and_all_of_the_data():
    real = rows(*range(20))
    halves = Halves.of(real, 100, Settings())
    assert halves.size == 10
    drawn = np.concatenate([part.features for part in halves.parts])
    np.testing.assert_array_equal(np.sort(drawn, axis=0), real.features)
    assert Halves.of(real, 4, Settings()).size == 4
    again = np.concatenate([part.features for part in Halves.of(real, 100, Settings()).parts])
    np.testing.assert_array_equal(drawn, again)


def test_noise_is_uniform():
    noise = noise_images((8, 8, 1), 17, np.arange(200))
    np.testing.assert_array_equal(noise_images((8, 8, 1), 17, np.array([7, 3])), noise[[7, 3]])
    assert noise.shape == (200, 8, 8, 1)
    assert scipy.stats.chisquare(np.bincount(noise.ravel(), minlength=17)).pvalue > 1e-3
    assert (
        scipy.stats.kstest(noise_images((2,), 0, np.arange(1000)).ravel(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    )


@pytest.mark.parametrize("name", ["frechet", "recognition"])
def test_the_customary_metrics_prefer_the_data_to_noise(name, clusters):
    points, labels = clusters
    train = Train(points, labels)
    halves = Halves((Features(points[::4]), Features(points[1::4])), Settings(), train)
    noise = np.random.default_rng(1).uniform(-20, 20, size=(25, 2))
    real, random = halves.score(name, Features(points[2::4])).value, halves.score(name, Features(noise)).value
    assert {"lower": real < random, "higher": real > random}[METRICS[name].better]


# --- levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 17, 256])
def test_dequantised_levels_come_back(number):
    """Every level with 64 draws."""
    levels = Levels(number)
    level = jnp.tile(jnp.arange(number), (64, 1))
    x = levels.dequantise(level, rng.for_samples(rng.stream(0, "levels"), jnp.arange(64)))
    np.testing.assert_array_equal(levels.quantise(x), level)
    assert float(x.min()) >= -1
    # Uniform within its level: u = (x + 1) K/2 − k.
    u = (np.asarray(x, np.float64) + 1) * number / 2 - np.asarray(level)
    assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("number", [2, 17, 256])
@pytest.mark.parametrize("draw", [2**-16, 1 - 2**-16], ids=["small", "large"])
def test_draws_near_the_ends_come_back_too(number, draw, monkeypatch):
    """x near ±1 is rounded by 2⁻²⁵, which is 2⁻²⁵ · 256/2 = 2⁻¹⁸ of a level's interval; (x + 1) by as much again."""
    monkeypatch.setattr(rng, "uniform", lambda keys, shape: jnp.full((1, *shape), draw, jnp.float32))
    levels, level = Levels(number), jnp.arange(number)[None]
    x = levels.dequantise(level, rng.for_samples(rng.stream(0, "levels"), jnp.arange(1)))
    np.testing.assert_array_equal(levels.quantise(x), level)
    assert float(x.min()) >= -1
    assert float(x.max()) < 1


@pytest.mark.parametrize("number", [2, 17, 256])
def test_values_outside_go_to_the_nearest_level(number):
    x = jnp.asarray([-5.0, -1.0, 1.0, 5.0])
    np.testing.assert_array_equal(Levels(number).quantise(x), [0, 0, number - 1, number - 1])
