"""Augmentation: EDM's own output, closed forms, the laws of the draws, and its place in training."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import rng
from score_sde.data import augmentation
from score_sde.data.augmentation import FEATURES, SYM6, Transform
from score_sde.errors import UserError
from score_sde.experiment import agreement
from tests import program, recorded

SAMPLES = 20_000
apply = jax.jit(augmentation.apply)
augment = jax.jit(augmentation.augment, static_argnums=2)
TOLD = "--config.model.augment_features=9"


def transform_of(parameters) -> Transform:
    """Of rows (mirrored, inverted, s, θ, a, φ, τ_x, τ_y)."""
    mirrored, inverted, *values = jnp.asarray(np.transpose(parameters), jnp.float32)
    return Transform(mirrored == 1, inverted == 1, *values[:4], jnp.stack(values[4:], axis=-1))


def of_one(**values: float) -> Transform:
    """One sample's, all else 0."""
    names = ("mirrored", "inverted", "s", "theta", "a", "phi", "tau_x", "tau_y")
    assert set(values) <= set(names)
    return transform_of([[values.get(name, 0.0) for name in names]])


def images(number: int, *shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(3), (number, *shape), minval=-1.0)


def keys(number: int) -> jax.Array:
    return rng.for_samples(rng.stream(0, "augmentation"), jnp.arange(number))


class TestTransforms:
    @pytest.mark.parametrize("case", ["colour", "grey", "published"])
    def test_is_the_published_code(self, case):
        """Each transform alone and all together, on noise, of which no interpolation is easy."""
        _, found = recorded.read("augmentation.npz", case)
        transform = transform_of(found["transforms"])
        np.testing.assert_allclose(apply(transform, found["images"]), found["output"], atol=1e-5)
        np.testing.assert_allclose(augmentation.told(transform), found["told"], atol=5e-7)

    def test_exchanges_are_exact(self):
        x = images(1, 6, 5, 3)
        np.testing.assert_array_equal(apply(of_one(), x), x)
        np.testing.assert_array_equal(apply(of_one(mirrored=1), x), x[:, :, ::-1])
        np.testing.assert_array_equal(apply(of_one(inverted=1), x), x[:, ::-1])

    def test_whole_pixels_are_shifted_and_what_comes_in_is_reflected(self):
        x, right, down = np.asarray(images(1, 16, 12, 3)), 5, -3
        extended = np.pad(x, ((0, 0), (15, 15), (11, 11), (0, 0)), mode="reflect")
        expected = extended[:, 15 - down :, 11 - right :][:, :16, :12]
        found = apply(of_one(tau_x=8 * right / 12, tau_y=8 * down / 16), x)
        np.testing.assert_allclose(found, expected, atol=5e-6)

    @pytest.mark.parametrize(
        "values",
        [
            {"s": 2.5},
            {"theta": 0.6},
            {"theta": np.pi},
            {"a": 2.5},
            {"a": 2.5, "phi": 0.9},
            {"s": 1.5, "theta": -2.0, "a": 1.2, "phi": 2.2, "tau_x": 0.3, "tau_y": -0.4},
        ],
    )
    def test_planes(self, values):
        """x(q) = b·q becomes b·(A (q + δ − t) − δ), where δ is by how much the filter's mean is not in its middle."""
        s, theta, a, phi, tau_x, tau_y = (values.get(name, 0) for name in ("s", "theta", "a", "phi", "tau_x", "tau_y"))
        rotation = lambda angle: np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rotation(-phi) @ np.diag([2 ** (-a / 5), 2 ** (a / 5)]) @ rotation(phi)
        matrix = 2 ** (-s / 5) * rotation(theta) @ matrix
        delta = (SYM6 @ np.arange(12) / SYM6.sum() - 5) / 2
        place, b, t = np.arange(32) - 15.5, np.array([0.02, -0.01]), 4 * np.array([tau_x, tau_y])
        q = np.stack(np.meshgrid(place, place), axis=-1)
        expected = ((q + delta - t) @ matrix.T - delta) @ b
        found = apply(of_one(**values), np.float32(q @ b)[None, :, :, None])[0, :, :, 0]
        middle = (slice(13, 19), slice(13, 19))  # which sees no reflection
        np.testing.assert_allclose(found[middle], expected[middle], atol=2e-6)


class TestDraws:
    @pytest.mark.parametrize("p", [0.12, 1.0])
    def test_laws(self, p):
        """Shares, means and deviations, within 5 standard errors."""
        drawn = jax.jit(augmentation.draw, static_argnums=1)(keys(SAMPLES), p)
        half = SAMPLES * np.array([0.5, p / 2])
        exchanged = np.array([drawn.mirrored.sum(), drawn.inverted.sum()])
        assert np.all(np.abs(exchanged - half) < 5 * np.sqrt(half))
        shift_x, shift_y = drawn.shift.T
        np.testing.assert_array_equal(shift_x != 0, shift_y != 0)  # together or not at all
        normals, angles = (drawn.scale, drawn.stretch, shift_x, shift_y), (drawn.rotation, drawn.direction)
        for values, chance, deviation in [
            *((each, p, 1) for each in normals),
            *((each, chance, np.pi / 3**0.5) for each, chance in zip(angles, (p, 0.5), strict=True)),
        ]:
            chosen = np.asarray(values)[np.asarray(values) != 0]
            assert abs(len(chosen) - SAMPLES * chance) <= 5 * np.sqrt(SAMPLES * chance * (1 - chance))
            assert abs(chosen.mean()) < 5 * deviation / np.sqrt(len(chosen))
            assert chosen.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * len(chosen)))
        assert np.abs(np.stack(angles)).max() <= np.float32(np.pi)

    def test_all_are_independent(self):
        """Correlations of the parameters, φ and of which are drawn among them, within 5/√n."""
        drawn = augmentation.draw(keys(SAMPLES), 0.5)
        values = [drawn.mirrored, drawn.inverted, *drawn[2:6], *drawn.shift.T]
        chosen = [np.asarray(each) != 0 for each in (*drawn[2:6], drawn.shift[:, 0])]
        for columns in (values, [*values[:2], *chosen]):
            correlation = np.corrcoef(np.stack([np.asarray(each, np.float64) for each in columns]))
            assert np.abs(correlation - np.eye(len(columns))).max() < 5 / np.sqrt(SAMPLES)

    def test_at_probability_0_nothing_changes_and_nothing_is_told(self):
        x = images(16, 8, 6, 3)
        y, told = augment(x, keys(16), 0.0)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(told, np.zeros((16, FEATURES)))

    def test_each_sample_is_its_own(self):
        x = images(16, 8, 6, 3)
        whole, told = augment(x, keys(16), 0.7)
        part, told_part = augment(x[5:9], keys(16)[5:9], 0.7)
        np.testing.assert_allclose(part, whole[5:9], atol=1e-5)
        np.testing.assert_array_equal(told_part, told[5:9])

    def test_compiled_is_the_same(self):
        x = images(16, 8, 6, 3)
        plain = augmentation.augment(x, keys(16), 0.7)
        compiled = augment(x, keys(16), 0.7)
        for one, two in zip(plain, compiled, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


class TestTraining:
    @pytest.mark.parametrize("p", [1.5, -0.1])
    def test_bad_probabilities_are_answered(self, p, tmp_path, refuse):
        line = refuse(program.flags(tmp_path / "new", "train", f"--config.training.augment={p}", TOLD), tmp_path)
        assert f"training: augment must lie in [0, 1], not {p}" in line

    @pytest.mark.parametrize("features", [0, 8])
    def test_a_network_that_is_not_told_is_refused(self, features, tmp_path, refuse):
        settings = ("--config.training.augment=0.12", f"--config.model.augment_features={features}")
        line = refuse(program.flags(tmp_path / "new", "train", *settings), tmp_path, compiles=True)
        assert (
            f"training: augment=0.12 is told to the network: it needs model.augment_features=9, not {features}" in line
        )

    def test_is_for_images(self, tmp_path):
        experiment = program.experiment(tmp_path, "--config.training.augment=0.12", TOLD)

        points = SimpleNamespace(shape=(2,), classes=0)
        with pytest.raises(UserError, match=r"training: augment=0.12 is for images, not for samples of shape \(2,\)"):
            agreement.check(dataclasses.replace(experiment, source=points))
