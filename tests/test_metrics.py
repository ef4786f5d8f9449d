"""Metrics on features against closed forms, constructed sets, and other projects' numbers.

The latter are in fixtures/metrics.npz, see record_metrics.py.
"""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from sklearn import metrics as sklearn_metrics

from score_sde.errors import UserError
from score_sde.evaluation import distances, kernel, mmd
from score_sde.evaluation import sliced_wasserstein as sliced
from score_sde.evaluation.features import Features
from score_sde.evaluation.halves import Halves
from score_sde.evaluation.inception_score import inception_score
from score_sde.evaluation.intervals import bootstrap_error, over_parts, wilson
from score_sde.evaluation.metrics import METRICS, Settings, Train, interval, score
from score_sde.evaluation.moments import Moments

DRAWS = 400
LINE = np.arange(20.0)[:, None]


def normal(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


# --- kernel distance and MMD ---------------------------------------------------------------------------------------


def moments_of_gaussian(mean, covariance):
    """E x, E x⊗x, E x⊗x⊗x."""
    cross = np.einsum("ab,c->abc", covariance, mean)
    third = np.einsum("a,b,c->abc", mean, mean, mean)
    third = third + cross + cross.transpose(2, 0, 1) + cross.transpose(0, 2, 1)
    return mean, covariance + np.outer(mean, mean), third


def exact_kernel_distance(one, other):
    """(x·y/d + 1)³ = Σ_j C(3, j) d^−j ⟨x^⊗j, y^⊗j⟩: the distances of the moments, weighted."""
    dim = len(one[0])
    pairs = zip(moments_of_gaussian(*one), moments_of_gaussian(*other), strict=True)
    return sum(math.comb(3, j) / dim**j * ((a - b) ** 2).sum() for j, (a, b) in enumerate(pairs, start=1))


def exact_gaussian_mmd(shift, length, dim):
    """N(0, I) and N(shift, I): x − y ~ N(m, 2I), E exp(−|x − y|²/2ℓ²) = (1 + 2/ℓ²)^(−d/2) exp(−|m|²/(2ℓ² + 4))."""
    total = 0.0
    for each in np.array(mmd.SCALES) * length:
        factor = (1 + 2 / each**2) ** (-dim / 2)
        total += 2 * factor * (1 - math.exp(-(shift @ shift) / (2 * each**2 + 4))) / len(mmd.SCALES)
    return total


LAWS = {
    "equal": (np.zeros(3), np.eye(3)),
    "near": (np.array([0.2, 0.0, 0.1]), np.diag([1.0, 1.3, 0.8])),
    "far": (np.array([1.0, -1.0, 0.5]), np.diag([2.0, 0.5, 1.0])),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["all", "subsets"])
def test_the_kernel_distance_is_unbiased_and_its_error_is_the_spread(law, kind):
    """Over many draws of 40 and 60 samples: the mean within its error, and the mean stated variance the variance."""
    mean, covariance = LAWS[law]
    draw = np.random.default_rng(0)
    values = []
    for seed in range(DRAWS):
        x, y = draw.normal(size=(40, 3)), mean + draw.normal(size=(60, 3)) @ np.sqrt(covariance)
        subsets = lambda x, y, seed=seed: kernel.over_subsets(x, y, subsets=8, size=20, seed=seed)
        values.append({"all": kernel.kernel_distance, "subsets": subsets}[kind](x, y))
    estimates, errors = np.array(values).T
    exact = exact_kernel_distance((np.zeros(3), np.eye(3)), LAWS[law])
    assert abs(estimates.mean() - exact) < 3.5 * estimates.std(ddof=1) / math.sqrt(DRAWS)
    # The spread of DRAWS heavy-tailed values is known to about 10 %; a first-order variance cut off at 0 adds some.
    assert (errors**2).mean() ** 0.5 == pytest.approx(estimates.std(ddof=1), rel=0.3)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_the_gaussian_mmd_is_unbiased_and_its_error_is_the_spread(shift):
    draw, move, values = np.random.default_rng(0), np.array([shift, 0, shift, 0]), []
    for _ in range(DRAWS):
        x, y = draw.normal(size=(50, 4)), move + draw.normal(size=(40, 4))
        values.append(mmd.two_sample(mmd.gaussians(1.5), x, y))
    estimates, errors = np.array(values).T
    assert abs(estimates.mean() - exact_gaussian_mmd(move, 1.5, 4)) < 3.5 * estimates.std(ddof=1) / math.sqrt(DRAWS)
    assert (errors**2).mean() ** 0.5 == pytest.approx(estimates.std(ddof=1), rel=0.2)


def test_the_terms_of_the_variance_are_unbiased():
    """k(x, y) = (1 + x)(1 + y) for x, y ~ N(0, 1) and N(½, 1): ζ = Var x Var y = 1; g(x) = −½ (1 + x), Var g = ¼."""
    product = lambda x, y: (1 + x) @ (1 + y).T
    draw = np.random.default_rng(0)
    terms = np.array(
        [mmd.estimate(product, draw.normal(size=(9, 1)), 0.5 + draw.normal(size=(12, 1))) for _ in range(8_000)]
    )
    error = terms.std(axis=0) / math.sqrt(len(terms))
    value, *_, zeta_xx, zeta_yy, zeta_xy = range(6)
    for column, expected in {value: 0.25, zeta_xx: 1.0, zeta_yy: 1.0, zeta_xy: 1.0}.items():
        assert abs(terms[:, column].mean() - expected) < 3.5 * error[column]
    # Of Var g the mean over other samples' projections is left, O(1/n) of it.
    np.testing.assert_allclose(terms[:, 1:3].mean(axis=0), 0.25, rtol=0.25)
    stated = np.mean([mmd.Estimate(*row).variance(9, 12) for row in terms])
    assert stated == pytest.approx(terms[:, 0].var(), rel=0.3)


def test_kernel_distance_block_by_block(small_blocks):
    """Against scikit-learn's kernel, the whole matrix at once, and torch-fidelity's and clean-fid's numbers below."""
    x, y = normal(30, 5), 0.5 + normal(23, 5, 1)
    k = lambda a, b: sklearn_metrics.pairwise.polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1)
    off_diagonal = lambda matrix: (matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1))
    expected = off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean()
    assert kernel.kernel_distance(x, y).value == pytest.approx(expected, rel=1e-12)
    length = mmd.bandwidth(y)
    assert length == pytest.approx(np.median(scipy.spatial.distance.pdist(y)), rel=1e-12)
    gammas = [1 / (2 * (scale * length) ** 2) for scale in mmd.SCALES]
    k = lambda a, b: np.mean([sklearn_metrics.pairwise.rbf_kernel(a, b, gamma=gamma) for gamma in gammas], axis=0)
    expected = off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean()
    assert mmd.mmd(x, y).value == pytest.approx(expected, rel=1e-12)


def test_the_error_does_not_depend_on_blocks(monkeypatch):
    x, y = normal(30, 5), 0.5 + normal(23, 5, 1)
    whole = mmd.mmd(x, y)
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert mmd.mmd(x, y) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_of_other_projects(others):
    generated, real = others["generated"][:50], others["real"]
    for name in ("kernel", "kernel_clean_fid"):
        assert kernel.kernel_distance(generated, real).value == pytest.approx(float(others[name]), rel=1e-12)
    # A subset as large as both sets is these: nothing is left to its choice, and the error is that of all samples.
    subsets = kernel.over_subsets(generated, real, subsets=3, size=1000, seed=0)
    assert subsets == pytest.approx(kernel.kernel_distance(generated, real), rel=1e-9)


def test_equal_rows_have_no_bandwidth():
    with pytest.raises(UserError, match="no bandwidth"):
        mmd.mmd(normal(9, 2), np.ones((9, 2)))


# --- Inception score -----------------------------------------------------------------------------------------------


def test_inception_score_of_one_class_and_of_all():
    assert inception_score(np.tile(np.eye(7)[2], (50, 1)), splits=5, seed=0) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.full((50, 7), 1 / 7), splits=5, seed=0) == pytest.approx((1, 0), abs=1e-12)
    value, error = inception_score(np.tile(np.eye(7), (6, 1)), splits=1, seed=0)
    assert value == pytest.approx(7, rel=1e-12)
    assert error is None


def test_inception_score_of_unsure_classes():
    """Each image p for its class and (1 − p)/(K − 1) for the others: K exp(−H)."""
    given = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    entropy = -(0.7 * math.log(0.7) + 3 * 0.1 * math.log(0.1))
    assert inception_score(np.tile(given, (5, 1)), splits=1, seed=0).value == pytest.approx(4 * math.exp(-entropy))


def test_splits_drop_nothing_and_shuffle():
    """23 rows in the order of their classes, over 5 splits: each split has several classes."""
    value, error = inception_score(np.eye(3)[np.repeat([0, 1, 2], [8, 8, 7])], splits=5, seed=0)
    assert 2 < value < 3
    assert error > 0


def test_inception_score_of_torch_fidelity(others, monkeypatch):
    """Its splits are stretches; so are these, once there is nothing to shuffle."""
    still = type("Still", (), {"permutation": staticmethod(np.arange)})
    monkeypatch.setattr(np.random, "default_rng", lambda seed: still)
    expected, deviation = others["inception_score"]
    logits = others["logits"]
    result = inception_score(np.exp(logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)), splits=4, seed=0)
    # The deviation there is over n and not n − 1 splits, and not divided by √n: σ/√(n − 1) here.
    assert result == pytest.approx((expected, deviation / math.sqrt(3)), rel=1e-9)


# --- sliced Wasserstein --------------------------------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift_and_of_a_scale():
    """W₂² in direction θ is (θ·m)² of a shift, and (c − 1)² E (θ·x)² of a scale."""
    x, move, theta = normal(40, 5), np.linspace(-1, 1, 5), sliced.directions(5)
    shifted, scaled = sliced.sliced_wasserstein(x, x + move), sliced.sliced_wasserstein(x, 1.5 * x)
    assert shifted == pytest.approx(np.sqrt(((move @ theta) ** 2).mean()), rel=1e-12)
    assert scaled == pytest.approx(0.5 * np.sqrt(((x @ theta) ** 2).mean()), rel=1e-12)
    assert sliced.sliced_wasserstein(x, x[::-1]) == 0
    np.testing.assert_allclose(np.linalg.norm(theta, axis=0), 1)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 6), (5, 7), (3, 12)])
def test_sorted_values_are_the_optimal_transport(n, m):
    """In each direction, against the assignment of lcm(n, m) equal shares of mass."""
    a, b = normal(n, 3), normal(m, 3, 1)
    theta, shares = sliced.directions(3), math.lcm(n, m)
    squares = []
    for direction in theta.T:
        left, right = np.repeat(a @ direction, shares // n), np.repeat(b @ direction, shares // m)
        cost = (left[:, None] - right) ** 2
        squares.append(cost[scipy.optimize.linear_sum_assignment(cost)].mean())
    assert sliced.sliced_wasserstein(a, b) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-12)


def test_sliced_wasserstein_of_pot(others):
    """With its directions."""
    a, b = (sliced.project(others[name], others["directions"]) for name in ("generated", "real"))
    assert sliced.between_sorted(a, b) == pytest.approx(float(others["sliced_wasserstein"]), rel=1e-12)


# --- intervals -----------------------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_its_standard_error():
    rows = normal(200, 1)[:, 0]
    assert bootstrap_error(lambda x: float(x.mean()), rows) == pytest.approx(rows.std() / math.sqrt(200), rel=0.1)


def test_an_interval_over_parts_is_students():
    values = [1.0, 2.0, 4.0]
    error = scipy.stats.sem(values)
    ends = scipy.stats.t.interval(0.95, 2, np.mean(values), error)
    assert over_parts(values, 50) == pytest.approx((7 / 3, error, *ends, 50))


@pytest.mark.parametrize("count", [0, 1, 17, 40])
def test_the_interval_of_a_share_is_wilsons(count):
    share = count / 40
    found = wilson(share, math.sqrt(share * (1 - share) / 40), 40)
    ends = scipy.stats.binomtest(count, 40).proportion_ci(method="wilson")
    assert found == pytest.approx((share, found.error, ends.low, ends.high, 40), abs=1e-12)
    wider = wilson(share, 2 * found.error, 40)
    assert (wider.high - wider.low > found.high - found.low) == (0 < count < 40)


@pytest.mark.parametrize(("name", "n", "stated"), [("kernel", 1000, 1000), ("frechet", 200, 20)])
def test_intervals_hold_what_they_should(name, n, stated):
    """95 % of them, the truth; of the Fréchet distance the mean at the parts' size."""
    draw, move = np.random.default_rng(0), np.array([0.5, 0])
    pair = lambda n: (Features(draw.normal(size=(n, 2))), Features(move + draw.normal(size=(n, 2))))
    truth = exact_kernel_distance((np.zeros(2), np.eye(2)), (np.array([0.5, 0]), np.eye(2)))
    if name == "frechet":
        truth = np.mean([score(name, *pair(20), Settings()).value for _ in range(3000)])
    settings = [Settings(seed=seed) for seed in range(100)]
    sets = [pair(n) for _ in settings]
    intervals = [interval(name, score(name, *each, s), *each, s) for each, s in zip(sets, settings, strict=True)]
    assert intervals[0].n == stated
    hits = sum(low <= truth <= high for _, _, low, high, _ in intervals)
    assert scipy.stats.binomtest(hits, 100, 0.95).pvalue > 1e-3


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_like():
    """Features of ten clusters, their classes, and what a sure classifier says of them."""
    draw = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 60)
    rows = 5 * np.eye(10)[labels] + 0.5 * draw.normal(size=(600, 10))
    return Features(rows.astype(np.float32), np.eye(10, dtype=np.float32)[labels]), labels


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_scores_and_has_a_floor(name, digits_like):
    features, labels = digits_like
    train = Train(features.features[:200], labels[:200])
    real = Features(*(each[200:] for each in features))
    floor = lambda: Halves.of(real, 100, Settings(seed=3), train).floor(name)
    value = floor()
    assert np.isfinite(value.value)
    assert floor() == value  # the same parts
    assert METRICS[name].better in {"lower", "higher"}
    # What is worse than the floor, metric by metric: noise far from the data, of which a classifier has no idea.
    noise = Features(20 + 9 * normal(100, 10, 5), np.full((100, 10), 0.1))
    if name != "memorisation":  # what is far from all data is no copy
        random = score(name, noise, real, Settings(), train).value
        assert {"lower": value.value < random, "higher": value.value > random}[METRICS[name].better]


@pytest.mark.parametrize("name", ["frechet", "kernel", "mmd", "sliced_wasserstein"])
def test_identical_sets_are_at_distance_zero(name):
    """The unbiased ones within their error: two copies have pairs that are one sample, and lie below 0."""
    rows = Features(normal(50, 4))
    value, error = score(name, rows, rows, Settings())
    assert abs(value) < (1e-10 if error is None else 4 * error)


def test_stored_moments_give_the_same_distance(digits_like):
    rows = digits_like[0].features
    stored = [Moments.of(part).gaussian() for part in (rows[:300], rows[300:])]
    expected = score("frechet", Features(rows[:300]), Features(rows[300:]), Settings()).value
    assert METRICS["frechet"].of_gaussians(*stored) == pytest.approx(expected, rel=1e-12)


ROWS = Features(normal(20, 3))
BAD = {
    "few": ("precision", Features(normal(5, 3)), ROWS, None, "'precision' needs at least 6 samples a set, not 5"),
    "sizes": ("frechet", Features(normal(9, 4)), ROWS, None, r"different sizes cannot be compared: \[3, 4\]"),
    "nan": ("kernel", Features(np.full((9, 3), np.nan)), ROWS, None, "9 of 9 generated rows are not finite"),
    "classifier": ("inception_score", ROWS, ROWS, None, "needs an extractor with a classifier"),
    "splits": (
        *("inception_score", Features(normal(3, 3), np.eye(3)), ROWS, None),
        r"over 10 splits \(metrics.inception_splits\) needs as many samples a set, not 3",
    ),
    "train": ("memorisation", ROWS, ROWS, None, "'memorisation' needs at least 6 training records, not 0"),
    "labels": ("recognition", ROWS, ROWS, Train(ROWS.features), "'recognition' needs data with labels"),
    "small": ("memorisation", ROWS, ROWS, Train(normal(1, 3)), "needs at least 6 training records"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_scored_is_said(case):
    name, generated, reference, train, message = BAD[case]
    with pytest.raises(UserError, match=message):
        score(name, generated, reference, Settings(), train)


def test_what_is_beyond_float64_is_said():
    huge = Features((1e200 * normal(9, 3)).astype(np.float64))
    with np.errstate(all="ignore"), pytest.raises(UserError, match=r"'kernel' is beyond float64 for features as large"):
        score("kernel", huge, ROWS, Settings())


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="kernel_subset_size must be at least 4, not 1"):
        Settings(kernel_subset_size=1)
    with pytest.raises(UserError, match=r"kernel_subsets must be at least 2.*inception_splits must be at least 1"):
        Settings(kernel_subsets=1, inception_splits=0)
