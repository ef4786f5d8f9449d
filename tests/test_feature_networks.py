"""Networks that make features: an independent implementation's outputs, and identities of their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from score_sde.errors import UserError
from score_sde.models import FeatureNetwork, inception, small_cnn
from score_sde.models.efficientnet import EfficientNetLite0, depthwise
from score_sde.models.inception import InceptionV3
from score_sde.models.small_cnn import SmallCNN
from score_sde.pretrained import efficientnet as efficientnet_importer
from score_sde.pretrained import inception as inception_importer
from score_sde.pretrained.tensors import Tensors, checked
from tests import recorded
from tests.networks import quick_jit

INCEPTION = FeatureNetwork(InceptionV3(), (299, 299, 3))


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_inception_gives_the_references_features_and_logits():
    """Recorded by fixtures/record_inception.py with torch-fidelity's, all of it, at 299×299."""
    weights, arrays = recorded.read("inception.npz", "full")
    tensors = Tensors(weights)
    params = checked(INCEPTION, inception_importer.convert(INCEPTION.settings, tensors), tensors, "the fixture")
    x = (recorded.coarse_images(2, 299).astype(np.float32) - 128) / 128
    found = dict(zip(("features", "logits"), quick_jit(INCEPTION.apply)(params, x), strict=True))
    for name, expected in arrays.items():
        scale = np.abs(expected).max()
        assert np.abs(expected[0] - expected[1]).max() > 0.03 * scale, "the images are told apart"
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5 * scale)


def test_inception_has_the_published_number_of_parameters():
    """21,785,568 without classes, where each normalisation has a scale besides; they are folded into the kernels."""
    scales = sum(each.shape[0] for path, each in INCEPTION.parameters().items() if path[-1] == "bias")
    assert INCEPTION.size() - 2048 * 1008 + scales == 21_785_568


def test_efficientnet_has_the_published_number_of_parameters():
    """4,652,008, scales of normalisation included; all biases but the last follow one."""
    network = FeatureNetwork(EfficientNetLite0(), (224, 224, 3))
    scales = sum(each.shape[0] for path, each in network.parameters().items() if path[-1] == "bias") - 1000
    assert network.size() + scales == 4_652_008


def test_average_pools_leave_out_what_is_outside():
    x = draw(1, 5, 6, 2)
    mean = np.asarray(inception.POOLS["average"](jnp.asarray(x)))
    np.testing.assert_allclose(mean[0, 0, 0], x[0, :2, :2].mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[0, 2, 5], x[0, 1:4, 4:].mean(axis=(0, 1)), rtol=1e-5, atol=1e-6)
    most = np.asarray(inception.POOLS["maximum"](jnp.asarray(x - 10)))
    np.testing.assert_array_equal(most[0, 4, 0], (x - 10)[0, 3:, :2].max(axis=(0, 1)))


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("sides", [(14, 14), (7, 9), (2, 3)])
def test_depthwise_by_shifts_is_the_grouped_convolution(size, stride, sides):
    x, kernel = draw(2, *sides, 6), draw(size, size, 6)
    grouped = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(depthwise(jnp.asarray(x), jnp.asarray(kernel), stride), grouped, rtol=0, atol=1e-5)


def test_a_folded_normalisation_is_the_normalisation():
    arrays = {"conv.weight": draw(4, 3, 3, 3), "bn.weight": draw(4), "bn.bias": draw(4)}
    arrays |= {"bn.running_mean": draw(4), "bn.running_var": np.exp(draw(4)), "bn.num_batches_tracked": np.array(7)}
    tensors = Tensors(arrays)
    part = tensors.folded("conv", "bn", 1e-3)
    assert (tensors.missing, tensors.left(), tensors.other) == ([], [], [])
    numbers = ("NHWC", "HWIO", "NHWC")
    of = lambda kernel: np.asarray(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers))
    x = draw(2, 5, 5, 3)
    plain = of(arrays["conv.weight"].transpose(2, 3, 1, 0))
    centred = (plain - arrays["bn.running_mean"]) / np.sqrt(arrays["bn.running_var"] + 1e-3)
    expected = arrays["bn.weight"] * centred + arrays["bn.bias"]
    np.testing.assert_allclose(of(part["kernel"]) + part["bias"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("importer", [inception_importer, efficientnet_importer])
def test_other_tensors_are_refused_by_name(importer):
    settings = InceptionV3() if importer is inception_importer else EfficientNetLite0()
    network = FeatureNetwork(settings, (299, 299, 3))
    tensors = Tensors({"other.weight": draw(3)})
    with pytest.raises(UserError, match=r"not in the file: .*left over in the file: other\.weight"):
        checked(network, importer.convert(settings, tensors), tensors, "FILE")


@pytest.mark.parametrize("shape", [(9, 9, 1), (8, 4, 3)])
def test_the_small_cnn_pools_as_the_window_does(shape):
    x = jnp.asarray(draw(2, *shape))
    np.testing.assert_array_equal(small_cnn._pooled(x), nnx.max_pool(x, (2, 2), strides=(2, 2)))
    network = FeatureNetwork(SmallCNN(classes=5, channels=(4, 6), features=7), shape)
    features, logits = jax.eval_shape(lambda x: network.apply(network.init(jax.random.key(0)), x), x)
    assert (features.shape, logits.shape) == ((2, 7), (2, 5))


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (InceptionV3(), (74, 299, 3), "from 75x75"),
        (InceptionV3(), (299, 299, 1), "3 channels"),
        (EfficientNetLite0(), (224, 224, 4), "3 channels"),
        (SmallCNN(), (3, 8, 1), "from 4x4"),
    ],
)
def test_wrong_shapes_are_refused(settings, shape, message):
    with pytest.raises(UserError, match=message):
        FeatureNetwork(settings, shape)
