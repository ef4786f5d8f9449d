"""Metrics on sets whose answer is known, and the levels of discrete data."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from score_sde import rng
from score_sde.data import Levels, Records
from score_sde.evaluation.frechet import frechet_distance
from score_sde.evaluation.metrics import METRICS, Reference, as_unit, noise_images, real_score, score
from score_sde.evaluation.recognition import NEIGHBOURS, Recogniser


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


def test_scores_are_means_over_whole_sets():
    """With the metric "mean of the images minus mean of the part" the answers are by hand."""
    metric = METRICS["recognition"]._replace(score=lambda images, part, _: float(images.mean() - part.mean()))
    parts = np.full((2, 1), 1.0), np.full((2, 1), 3.0)
    reference = Reference(parts, Records({}), 2)
    images = np.array([[2.0], [4.0], [6.0], [8.0], [100.0]])  # two sets of two, and one left over
    result = score(metric, images, reference)
    assert result.value == pytest.approx(((3 - 2) + (7 - 2)) / 2)
    assert result.spread == pytest.approx(np.std([1, 5], ddof=1))
    assert score(metric, images[:3], reference).spread is None
    assert real_score(metric, reference).value == pytest.approx(0)


def test_the_reference_splits_the_test_set_in_two():
    image = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) % 17
    train = Records({"image": image, "label": np.zeros(20, int)})
    reference = Reference.of(train, Records({"image": image, "label": np.zeros(20, int)}), 17, 100)
    assert reference.size == 10
    np.testing.assert_array_equal(np.concatenate(reference.parts), as_unit(image, 17))
    assert Reference.of(train, train, 17, 4).size == 4


def test_unit_images_and_noise():
    np.testing.assert_array_equal(as_unit(np.array([[[[0], [16]]]], np.uint8), 17), [[0.0, 1.0]])
    noise = noise_images((8, 8, 1), 17, 200)
    assert noise.shape == (200, 8, 8, 1)
    assert scipy.stats.chisquare(np.bincount(noise.ravel(), minlength=17)).pvalue > 1e-3


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_prefers_the_data_to_noise(name, clusters):
    points, labels = clusters
    parts = points[::4], points[1::4]
    reference = Reference(parts, Records({"image": points, "label": labels}), 2)
    noise = np.random.default_rng(1).uniform(-20, 20, size=(25, 2))
    real, random = score(METRICS[name], points[2::4], reference).value, score(METRICS[name], noise, reference).value
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
