"""The pure training step: what it depends on, what it sums, which labels it hides, how a learned process is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_sde import rng
from score_sde.data import Levels, augmentation
from score_sde.denoiser import Model, Parameterisation
from score_sde.losses import OBJECTIVES, TIMES, WEIGHTINGS, Bound, Times
from score_sde.sde import VDM, VP
from score_sde.training.ema import Exponential
from score_sde.training.optimiser import Optimiser
from score_sde.training.state import TrainState, Window
from score_sde.training.step import NO_LABEL, cropped, make_step, mirrored

pytestmark = pytest.mark.usefixtures("jax_rules")


def linear(params, x, noise_condition, condition, *, train, rng):
    """A network that a closed form is near: ε̂ = w x + b."""
    return params["w"] * x + params["b"]


def toy(
    seed: int = 0,
    sde=None,
    objective=None,
    times="uniform",
    apply=linear,
    label_drop=0.0,
    optimiser=None,
    flip=False,
    crop=0,
    augment=0.0,
):
    """(step, state, batch) of a small problem: all the data are one image."""
    optimiser = optimiser or Optimiser(learning_rate=0.02).build(optax.constant_schedule(0.02))
    model = Model(sde=sde or VP(), parameterisation=Parameterisation(), apply=apply)
    distribution = TIMES[times]()
    step = make_step(
        model=model,
        objective=objective or OBJECTIVES["denoising"](),
        weighting=WEIGHTINGS["sigma2"](),
        times=Times(distribution),
        optimiser=optimiser,
        levels=Levels(256),
        profiles=[Exponential(6.6)],
        label_drop=label_drop,
        seed=seed,
        flip=flip,
        crop=crop,
        augment=augment,
    )
    params = {"network": {"w": jnp.zeros(()), "b": jnp.zeros(())}}
    if model.sde.learned:
        params["process"] = model.sde.init()
    state = TrainState.create(params, optimiser, [Exponential(6.6)], distribution.init())
    return step, state, {"image": jnp.full((32, 4, 4, 1), 200, jnp.uint8)}


class TestStep:
    def test_is_a_function_of_state_and_batch(self):
        step, state, batch = toy()
        one, two = jax.jit(step)(state, batch), jax.jit(toy()[0])(state, batch)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(a, b)
        assert int(state.step) == 0
        assert int(one.step) == 1

    def test_noise_differs_by_step_and_seed(self):
        step, state, batch = toy()
        step, other = jax.jit(step), jax.jit(toy(seed=1)[0])
        losses = {float(step(state, batch).window.loss)}
        losses.add(float(step(dataclasses.replace(state, step=jnp.asarray(1, jnp.int32)), batch).window.loss))
        losses.add(float(other(state, batch).window.loss))
        assert len(losses) == 3

    def test_loss_decreases(self):
        """With ε̂ = 0 the loss is E ε² = 1; the best w and b do far better on data that are one image."""
        step, state, batch = toy()
        step = jax.jit(step)
        losses = []
        for _ in range(400):
            state = step(dataclasses.replace(state, window=Window.empty()), batch)
            losses.append(float(state.window.loss))
        assert losses[0] == pytest.approx(1, abs=0.2)
        assert np.mean(losses[-50:]) < 0.4

    def test_loss_and_gradient_are_summed(self):
        step, state, batch = toy()
        step = jax.jit(step)
        singles = []
        whole = single = state
        for _ in range(3):
            whole = step(whole, batch)
            single = step(dataclasses.replace(single, window=Window.empty()), batch)
            singles.append(single.window)
        assert int(whole.window.count) == 3
        np.testing.assert_allclose(whole.window.loss, sum(float(each.loss) for each in singles), rtol=1e-6)
        expected = sum(float(each.gradient_norm) for each in singles)
        np.testing.assert_allclose(whole.window.gradient_norm, expected, rtol=1e-6)

    def test_the_history_of_times_is_part_of_the_state(self):
        """Going on from a state is going on in one run, bit for bit, and the history holds every sample's loss."""
        step, state, batch = toy(times="loss_second_moment")
        step = jax.jit(step)
        for count in range(1, 4):
            state = step(state, batch)
            assert int(state.times.counts.sum()) == 32 * count
        host = jax.tree.map(jnp.asarray, jax.device_get(state))
        for a, b in zip(jax.tree.leaves(step(state, batch)), jax.tree.leaves(step(host, batch)), strict=True):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(("drop", "low", "high"), [(0.0, 0, 0), (1.0, 6400, 6400), (0.2, 1120, 1440)])
    def test_a_share_of_labels_is_hidden(self, drop, low, high):
        """5 standard errors √(6400 · 0.2 · 0.8) = 32 about 1280; a label that is not hidden is what it was."""
        seen = []

        def apply(params, x, noise_condition, condition, *, train, rng):
            jax.debug.callback(lambda label: seen.append(np.asarray(label)), condition["label"])
            return params["w"] * x + params["b"]

        step, state, batch = toy(apply=apply, label_drop=drop)
        labels = np.arange(32, dtype=np.int32) % 10
        step = jax.jit(step)
        for _ in range(200):
            state = step(state, {**batch, "label": jnp.asarray(labels)})
        jax.block_until_ready(state)
        jax.effects_barrier()
        seen = np.stack(seen[:200])
        hidden = seen == NO_LABEL
        assert low <= hidden.sum() <= high
        np.testing.assert_array_equal(np.where(hidden, labels, seen), np.broadcast_to(labels, seen.shape))
        if 0 < drop < 1:
            assert len({row.tobytes() for row in hidden}) > 190  # drawn anew at each step

    def test_half_of_the_images_are_mirrored(self):
        """5 standard errors √(6400 · ¼) = 40 about 3200; an image that is not mirrored is what it was."""
        image = np.arange(32 * 3 * 5 * 2).astype(np.uint8).reshape(32, 3, 5, 2)
        keys_at = lambda step: rng.for_samples(rng.at_step(rng.stream(0, "mirrored"), step), jnp.arange(32))
        one = jax.jit(mirrored)
        seen = np.stack([one(image, keys_at(step)) for step in range(200)])
        other = (seen != image).any(axis=(2, 3, 4))
        np.testing.assert_array_equal(seen, np.where(other[..., None, None, None], image[:, :, ::-1], image))
        assert 3000 <= other.sum() <= 3400
        assert len({row.tobytes() for row in other}) > 190  # drawn anew at each step
        np.testing.assert_array_equal(mirrored(image[4:8], keys_at(0)[4:8]), seen[0][4:8])  # each by its own key

    def test_training_mirrors_where_it_is_told_to(self):
        (plain, state, _), (flipping, _, _) = toy(), toy(flip=True)
        image = jnp.arange(32 * 16, dtype=jnp.int32).reshape(32, 4, 4, 1) % 256
        state = dataclasses.replace(state, params={"network": {"w": jnp.ones(()), "b": jnp.zeros(())}})
        keys = rng.for_samples(rng.at_step(rng.stream(0, "train"), 0), jnp.arange(32))
        loss = lambda step, image: float(jax.jit(step)(state, {"image": image}).window.loss)
        assert loss(flipping, image) == loss(plain, mirrored(image, rng.child(keys, 4))) != loss(plain, image)

    def test_images_are_cropped_anywhere(self):
        """Each of the 25 places with probability 1/25: 5 standard errors, 16 each, about 256 of 6400."""
        image = np.random.default_rng(0).integers(0, 256, (32, 5, 7, 2)).astype(np.uint8)
        wide = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
        keys_at = lambda step: rng.for_samples(rng.at_step(rng.stream(0, "cropped"), step), jnp.arange(32))
        one = jax.jit(cropped, static_argnums=2)
        counts = np.zeros((5, 5), int)
        for step in range(200):
            seen = np.asarray(one(image, keys_at(step), 2))
            assert seen.shape == image.shape
            here = [
                [(seen == wide[:, top : top + 5, left : left + 7]).all(axis=(1, 2, 3)) for left in range(5)]
                for top in range(5)
            ]
            assert (np.sum(here, axis=(0, 1)) == 1).all()
            counts += np.sum(here, axis=2)
        assert (np.abs(counts - 6400 / 25) < 5 * np.sqrt(6400 / 25)).all()
        np.testing.assert_array_equal(cropped(image[4:8], keys_at(0)[4:8], 2), one(image, keys_at(0), 2)[4:8])

    def test_training_crops_where_it_is_told_to(self):
        (plain, state, _), (cropping, _, _) = toy(), toy(crop=2)
        image = jnp.arange(32 * 16, dtype=jnp.int32).reshape(32, 4, 4, 1) % 256
        state = dataclasses.replace(state, params={"network": {"w": jnp.ones(()), "b": jnp.zeros(())}})
        keys = rng.for_samples(rng.at_step(rng.stream(0, "train"), 0), jnp.arange(32))
        loss = lambda step, image: float(jax.jit(step)(state, {"image": image}).window.loss)
        assert loss(cropping, image) == loss(plain, cropped(image, rng.child(keys, 6), 2)) != loss(plain, image)

    def test_training_augments_where_it_is_told_to_and_the_network_is_told(self):
        seen = []

        def objective(denoiser, weighting, x_0, condition, keys, t, factor):
            jax.debug.callback(lambda *given: seen.append(given), x_0, condition)
            return OBJECTIVES["denoising"]()(denoiser, weighting, x_0, condition, keys, t, factor)

        image = jnp.arange(32 * 16, dtype=jnp.int32).reshape(32, 4, 4, 1) % 256
        for p in (0.0, 0.5):
            step, state, _ = toy(objective=objective, augment=p)
            jax.block_until_ready(jax.jit(step)(state, {"image": image, "label": jnp.arange(32)}))
            jax.effects_barrier()
        (plain, untold), (x_0, told) = seen
        assert set(untold) == {"label"}
        keys = rng.child(rng.for_samples(rng.at_step(rng.stream(0, "train"), 0), jnp.arange(32)), 5)
        expected, parameters = augmentation.augment(plain, keys, 0.5)
        np.testing.assert_allclose(x_0, expected, atol=1e-5)
        np.testing.assert_allclose(told["augment"], parameters, atol=1e-6)
        np.testing.assert_array_equal(told["label"], np.arange(32))

    def test_a_learned_process_has_its_ends_from_the_bound_and_its_shape_from_the_variance(self, monkeypatch):
        """With plain gradient descent the change of a parameter is its gradient: that of the bound for the network and
        the ends, that of `schedule_loss` for the shape."""
        changes = []
        for trained in (True, False):
            if not trained:
                nothing = lambda sde, t, at_time: jnp.zeros(())
                monkeypatch.setattr("score_sde.training.step.schedule_loss", nothing)
            step, state, batch = toy(sde=VDM(features=4), objective=Bound(), optimiser=optax.sgd(1.0))
            process = state.params["process"]
            bent = {**process["shape"], "weight": process["shape"]["weight"] + jnp.arange(4.0)}
            params = {**state.params, "process": {**process, "shape": bent}}
            after = jax.jit(step)(dataclasses.replace(state, params=params), batch)
            changes.append(jax.tree.map(lambda new, old: np.asarray(new - old), after.params, params))
        with_it, without = changes
        jax.tree.map(np.testing.assert_array_equal, with_it["network"], without["network"])
        np.testing.assert_array_equal(with_it["process"]["ends"], without["process"]["ends"])
        assert np.all(with_it["process"]["ends"] != 0)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(without["process"]["shape"]))
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(with_it["process"]["shape"]))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_first_bad_step_is_kept(self, bad):
        window = Window.empty()
        for number, loss in enumerate([0.5, 0.25, bad, 0.5, -bad], start=1):
            window = window.add(jnp.asarray(number, jnp.int32), jnp.float32(loss), jnp.float32(1))
        assert int(window.bad_step) == 3
        np.testing.assert_equal(float(window.bad_loss), bad)

    def test_bad_gradient_alone_is_bad(self):
        window = Window.empty().add(jnp.asarray(4, jnp.int32), jnp.float32(1), jnp.float32(np.inf))
        assert int(window.bad_step) == 4
