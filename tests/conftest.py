"""Fixtures for all tests: a small network and its folder, a test image, and the golden files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compat.torchvision_stub import has_torchvision
from hypothesis import HealthCheck, settings
from tiny_network import TINY_CONFIG, make_tiny_model

from masklet.engine import make_engine
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

has_torchvision()  # prepares it before transformers imports it

# Machines that run tests may be busy with other work, so no example has a time limit.
settings.register_profile("masklet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("masklet")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden masks of the embedded model before comparing"
    )


def pytest_configure(config):
    has_torchvision()  # before transformers imports it
    # The repr of a failing example may contain a whole network. This warning must not hide the failure.
    config.addinivalue_line("filterwarnings", "ignore:Generating overly large repr")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_convolutions(request):
    """By default torch rounds the inputs of float32 convolutions on GPUs, which hides differences."""
    if not request.node.get_closest_marker("gpu"):
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="session")
def golden_folder():
    """What reference implementations computed, with the images they were given: see its README.md."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session", params=["cpu", pytest.param("eager", marks=pytest.mark.slow)])
def engine_name(request):
    """The engines that are compared with the references."""
    return request.param


@pytest.fixture(scope="session")
def segmenter_of(engine_name):
    """A function from a model to the segmenter that is compared with the references."""

    def segmenter_of(model):
        return Segmenter(make_engine(model, engine_name), ImageProcessor(model.config.image_size))

    return segmenter_of


@pytest.fixture(scope="session")
def tiny_config():
    return TINY_CONFIG


@pytest.fixture(scope="session")
def tiny_model():
    model = make_tiny_model()
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield model
    unchanged = (weight.equal(first[name]) for name, weight in model.state_dict().items())
    assert all(unchanged), "a test changed the shared model"


@pytest.fixture(scope="session")
def sam(tiny_model, tiny_config):
    return Segmenter(make_engine(tiny_model), ImageProcessor(tiny_config.image_size))


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image():
    """(48, 80, 3) uint8 array: a bright rectangle on noise."""
    pixels = np.random.default_rng(0).integers(0, 100, (48, 80, 3), dtype=np.uint8)
    pixels[10:30, 20:50] += 150
    return pixels


@pytest.fixture(scope="session")
def encoded(sam, image):
    """The image as an EncodedImage."""
    return sam.image(image)


@pytest.fixture(scope="session")
def repository():
    """The folder of the repository."""
    return Path(__file__).parents[1]
