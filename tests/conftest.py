"""What the tests share: a network that takes a moment, its folder, and the files kept outside the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.engine import make_engine
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.segmenter import Segmenter

# Time says nothing on a machine that does other work as well.
settings.register_profile("masklet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("masklet")


def pytest_configure(config):
    # What hypothesis prints of a failure may hold a whole network; the failure matters more.
    config.addinivalue_line("filterwarnings", "ignore:Generating overly large repr")


SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """Reference results and samples, which lie beside the repository."""
    if not SHARED.exists():
        pytest.skip(f"the reference data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_config():
    """Every part of SAM 2.1, as small as they go."""
    return Sam2Config(
        image_size=64,
        hidden_size=32,
        image_encoder=Sam2ImageEncoderConfig(
            hidden_size=8,
            blocks_per_stage=(1, 1, 2, 1),
            global_attention_blocks=(3,),
            window_size_per_stage=(8, 4, 4, 4),
            window_positional_embedding_background_size=(7, 7),
        ),
        prompt_encoder=Sam2PromptEncoderConfig(mask_input_channels=8),
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=32, num_attention_heads=2),
        memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=32),
        memory_encoder=Sam2MemoryEncoderConfig(output_channels=16),
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Random weights, the same in every run; loud enough that masks have borders."""
    generator = torch.Generator().manual_seed(0)
    model = Sam2Model(tiny_config).eval().requires_grad_(False)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:  # of norms and biases
            parameter.copy_(name.endswith("weight") + 0.1 * noise)
        else:
            parameter.copy_(noise if "embed" in name else 1.3 * noise * parameter[0].numel() ** -0.5)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    yield model
    assert all(weight.equal(first[name]) for name, weight in model.state_dict().items()), "a test changed it for others"


@pytest.fixture(scope="session")
def sam(tiny_model, tiny_config):
    return Segmenter(make_engine(tiny_model), Sam2ImageProcessor(tiny_config.image_size))


@pytest.fixture(scope="session")
def tiny_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image():
    """(48, 80, 3) uint8: a bright square on noise."""
    pixels = np.random.default_rng(0).integers(0, 100, (48, 80, 3), dtype=np.uint8)
    pixels[10:30, 20:50] += 150
    return pixels


@pytest.fixture(scope="session")
def encoded(sam, image):
    return sam.image(image)


@pytest.fixture(scope="session")
def repository():
    """The folder of the repository."""
    return Path(__file__).parents[1]
