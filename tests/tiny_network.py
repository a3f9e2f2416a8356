"""A network with all modules of SAM 2.1, each as small as possible."""

import torch

from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.model.sam2 import Sam2Model

TINY_CONFIG = Sam2Config(
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


def make_tiny_model():
    """Random weights, the same in every run, of a scale at which masks have borders."""
    generator = torch.Generator().manual_seed(0)
    model = Sam2Model(TINY_CONFIG).eval().requires_grad_(False)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:  # norms and biases
            parameter.copy_(name.endswith("weight") + 0.1 * noise)
        else:
            parameter.copy_(noise if "embed" in name else 1.3 * noise * parameter[0].numel() ** -0.5)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    return model
