"""Networks to run in both engines, and what goes into their functions."""

import copy

import pytest
import torch
from edgetam import SMALL, random_edgetam

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
)
from masklet.engine import CpuEngine, EagerEngine
from masklet.model.memory_attention import Memory
from masklet.model.sam2 import Sam2Model

WIDE = Sam2Config(  # wide enough that the CPU engine folds attention to memory
    image_size=256,
    hidden_size=256,
    image_encoder=Sam2ImageEncoderConfig(
        hidden_size=16,
        num_attention_heads=2,
        blocks_per_stage=(1, 2, 3, 2),
        global_attention_blocks=(2, 4),
        window_size_per_stage=(8, 4, 14, 7),
        window_positional_embedding_background_size=(5, 5),
    ),
    mask_decoder=Sam2MaskDecoderConfig(mlp_dim=96),
    memory_attention=Sam2MemoryAttentionConfig(num_layers=2, feed_forward_hidden_size=128),
)


def random_model(config):
    """Random weights of a scale at which errors show."""
    torch.manual_seed(0)
    model = Sam2Model(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        elif parameter.std() < 0.1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(tiny_model):
    return {"tiny": copy.deepcopy(tiny_model), "wide": random_model(WIDE), "EdgeTAM": random_edgetam(SMALL)}


@pytest.fixture(scope="module", params=["tiny", "wide", "EdgeTAM"])
def engines(models, request):
    """(eager, cpu) of one network."""
    model = models[request.param]
    return EagerEngine(model), CpuEngine(model)


@pytest.fixture(scope="module")
def features(engines):
    """Of two images that are not square."""
    side = engines[0].config.image_size
    pixels = torch.randn(2, 3, side, side // 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return engines[0].encode(pixels)


def random_memory(config, map_hw, *, objects, maps=6, pointers=4, is_empty=None):
    """Memory of ``objects`` objects, in which every slot differs."""
    generator = torch.Generator().manual_seed(5)
    memory_dim = config.memory_encoder.output_channels
    return Memory(
        maps=torch.randn(objects, maps, config.tokens_per_memory(map_hw), memory_dim, generator=generator).bfloat16(),
        map_slots=torch.randint(config.num_maskmem, (objects, maps), generator=generator),
        pointers=torch.randn(objects, pointers, config.hidden_size, generator=generator),
        pointer_distances=torch.rand(objects, pointers, generator=generator),
        is_empty=is_empty,
    )


def assert_close(ours, expected, tolerance=1e-5):
    """Within ``tolerance`` of the largest value."""
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    if not ours.numel():
        return
    difference = (ours - expected).abs().max()
    assert difference <= tolerance * max(expected.abs().max().item(), 1e-6)
