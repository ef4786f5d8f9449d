"""U-ViT's own: sizes and weights as published, and what is a token of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.models.functional import Network
from score_sde.models.uvit import UViT
from score_sde.pretrained.tensors import Tensors, checked
from score_sde.pretrained.uvit import convert
from tests import recorded
from tests.networks import BATCH, inputs, moved, moved_params, network, quick_jit

# Cases of the recorded reference, as this project's settings.
REFERENCE = {
    "labels": ({"depth": 4, "width": 48, "heads": 4, "classes": 6}, (8, 8, 4)),
    "plain": ({"depth": 6, "width": 32, "heads": 2, "patch": 4, "final_convolution": False}, (8, 8, 3)),
}


def run(of, params, x, noise, condition=None):
    return quick_jit(lambda x: of.apply(params, x, noise, condition, train=False, rng=None))(x)


@pytest.mark.parametrize(
    ("settings", "shape", "exact", "millions"),
    [
        ({"size": "small"}, (32, 32, 3), 44_255_328, 44),
        ({"size": "mid", "patch": 4, "classes": 999}, (64, 64, 3), 130_940_292, 131),
        ({"size": "large", "patch": 4, "classes": 999}, (64, 64, 3), 286_827_652, 287),
        ({"size": "large", "classes": 1000}, (32, 32, 4), 286_763_172, 287),
        ({"size": "huge", "classes": 1000, "final_convolution": False}, (32, 32, 4), 500_832_016, 501),
    ],
)
def test_sizes_are_those_of_the_paper(settings, shape, exact, millions):
    """Table 1 of Bao et al. 2023; exact: counted in the original's module. One class fewer is the row for no label."""
    size = Network(UViT(**settings), shape).size()
    assert size == exact
    assert round(size / 1e6) == millions


@pytest.mark.parametrize("case", REFERENCE)
def test_published_weights_give_the_published_networks_output(case):
    """Recorded by fixtures/record_uvit.py. The last label is no label."""
    (settings, shape), (weights, arrays) = REFERENCE[case], recorded.read("uvit.npz", case)
    of, tensors = Network(UViT(**settings), shape), Tensors(weights)
    params = checked(of, convert(of.settings, tensors), tensors, "file")
    told = None
    if "y" in arrays:
        told = {"label": jnp.asarray(np.where(arrays["y"] == settings["classes"], -1, arrays["y"]))}
    x, noise = jnp.asarray(arrays["x"].transpose(0, 2, 3, 1)), jnp.asarray(arrays["timesteps"])
    expected = arrays["output"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(run(of, params, x, noise, told), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_tensors_of_another_network_are_named():
    tensors, of = Tensors(recorded.read("dit.npz", "plain")[0]), Network(UViT(depth=2, width=32, heads=2), (8, 8, 3))
    with pytest.raises(UserError, match=r"not in the file: pos_embed, patch_embed.proj.weight.*left over"):
        checked(of, convert(of.settings, tensors), tensors, "file")


def test_learnt_positions_are_of_one_resolution_and_the_others_of_any():
    shapes = lambda positions, shape: {
        path: each.shape for path, each in Network(UViT(positions=positions, depth=2), shape).parameters().items()
    }
    for positions in ("sincos", "rotary"):
        assert shapes(positions, (8, 8, 3)) == shapes(positions, (4, 24, 3))
    assert shapes("learnt", (8, 8, 3))["positions",] == (1 + 16, 512)
    assert shapes("learnt", (4, 24, 3))["positions",] == (1 + 24, 512)
    assert shapes("rotary", (4, 24, 3))["positions",] == (1, 512)


@pytest.mark.parametrize("positions", ["learnt", "sincos", "rotary"])
def test_patches_know_their_places_and_the_conditions_tokens_have_none(positions):
    variant = (("positions", positions), ("patch", 1), ("token_features", 5), ("final_convolution", False))
    of, params, (x, noise) = network("uvit", variant), moved("uvit", variant), inputs("uvit")
    tokens = jax.random.normal(jax.random.key(5), (BATCH, 3, 5))
    one = run(of, params, x, noise, {"tokens": tokens})
    share = float(jnp.abs(one).max())
    swapped = run(of, params, x[:, ::-1], noise, {"tokens": tokens})[:, ::-1]
    assert float(jnp.abs(one - swapped).max()) > 1e-3 * share
    np.testing.assert_allclose(run(of, params, x, noise, {"tokens": tokens[:, ::-1]}), one, rtol=0, atol=1e-5 * share)


def test_audio():
    of = Network(UViT(depth=2, width=16, heads=2, patch=4), (20, 3))
    x, noise = jax.random.normal(jax.random.key(1), (BATCH, 20, 3)), inputs("uvit")[1]
    one, two = (run(of, moved_params(of.parameters()), each, noise) for each in (x, x.at[:, 5].add(3.0)))
    assert one.shape == x.shape
    assert np.all(np.abs(one - two).reshape(BATCH, 5, -1).max(axis=2) > 1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 3}, "depth must be even, not 3"),
        ({"size": "median"}, "unknown size 'median'"),
        ({"positions": "learned"}, "did you mean 'learnt'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        UViT(**settings)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="uvit with these settings needs sides divisible by 2, not 5x8"):
        Network(UViT(), (5, 8, 3))
