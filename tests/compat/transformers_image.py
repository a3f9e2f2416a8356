"""Small models of both sides with the same weights, for behaviour tests that run on each."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from compat.torchvision_stub import has_torchvision

import masklet.compat.transformers as ours

SIDE = 64
BACKBONE = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 16,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 2, 3, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [4, 4, 4, 2],
    "global_attention_blocks": [4],
    "image_size": [SIDE, SIDE],
    "window_positional_embedding_background_size": [3, 3],
}
VISION = {
    "backbone_config": BACKBONE,
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 32,
}
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "mask_input_channels": 8}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}

BOTH = ["transformers", "masklet"]


def package(kind):
    """The classes of one side."""
    return transformers if kind == "transformers" else ours


def small_config(kind, **changes):
    """A configuration of 64 pixels; changes are of the mask decoder."""
    return package(kind).Sam2Config(
        vision_config=copy.deepcopy(VISION),
        prompt_encoder_config=dict(PROMPTS),
        mask_decoder_config={**DECODER, **changes},
    )


@functools.cache
def small_weights():
    """Weights with activations of normal size, by the names that both sides share."""
    torch.manual_seed(0)
    weights = {}
    for name, tensor in transformers.Sam2Model(small_config("transformers")).state_dict().items():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3
        weights[name] = torch.randn(tensor.shape) * scale + (name.endswith("weight") and tensor.ndim == 1)
    weights["prompt_encoder.shared_embedding.positional_embedding"] = weights[
        "shared_image_embedding.positional_embedding"
    ]
    return weights


def small_model(kind):
    """A model of one side with these weights."""
    model = package(kind).Sam2Model(small_config(kind)).eval()
    model.load_state_dict(small_weights())
    return model


def small_processor(kind, **settings):
    """A processor of 64 pixels; tests of transformers' are skipped without torchvision."""
    if kind == "transformers" and not has_torchvision():
        pytest.skip("transformers' processors need torchvision")
    size, quarter = ({"height": side, "width": side} for side in (SIDE, SIDE // 4))
    image_processor = package(kind).Sam2ImageProcessor(**{"size": size, "mask_size": quarter, **settings})
    return package(kind).Sam2Processor(image_processor)


def inputs_of(batch=2, objects=3, points=2):
    """Pixels, points, labels and boxes."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(batch, objects, 2, 2, generator=generator) * SIDE
    return SimpleNamespace(
        pixels=torch.randn(batch, 3, SIDE, SIDE, generator=generator),
        points=torch.rand(batch, objects, points, 2, generator=generator) * SIDE,
        labels=torch.randint(0, 2, (batch, objects, points), generator=generator),
        boxes=torch.cat([corners.amin(2), corners.amax(2)], -1),
        masks=torch.randn(1, 1, SIDE // 4, SIDE // 4, generator=generator) * 5,
    )


def noise_image(height=40, width=60, channels=3, seed=0):
    """(height, width, channels) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
