"""Small EdgeTAMs with random weights."""

import torch

from masklet.config import (
    RepVitConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    SpatialPerceiverConfig,
    edgetam_config,
)
from masklet.model.sam2 import Sam2Model

SMALL = edgetam_config(
    image_size=256,
    hidden_size=128,
    image_encoder=RepVitConfig(embed_dim_per_stage=(8, 16, 96, 64), blocks_per_stage=(1, 1, 3, 1)),
    mask_decoder=Sam2MaskDecoderConfig(mlp_dim=96, num_attention_heads=4),
    memory_attention=Sam2MemoryAttentionConfig(num_layers=2, feed_forward_hidden_size=128),
    perceiver=SpatialPerceiverConfig(num_latents=24, num_latents_2d=16),
)

TINY = edgetam_config(
    image_size=64,
    hidden_size=64,
    image_encoder=RepVitConfig(embed_dim_per_stage=(16, 24, 32, 48), blocks_per_stage=(1, 1, 1, 1)),
    mask_decoder=Sam2MaskDecoderConfig(mlp_dim=128, num_attention_heads=4),
    memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=32),
    memory_encoder=Sam2MemoryEncoderConfig(output_channels=32),
    perceiver=SpatialPerceiverConfig(num_latents=8, num_latents_2d=4),
)


def random_edgetam(config, *, presence=5.0, seed=58):
    """A network whose masks have borders. ``presence`` is the bias of the object score."""
    generator = torch.Generator().manual_seed(seed)
    model = Sam2Model(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.1 * noise.abs())
        elif tensor.ndim == 1:
            # Residuals that are added at full strength would grow from block to block.
            gain = 0.5 if ".bn." in name else 1.0
            tensor.copy_(gain * name.endswith("weight") + 0.1 * noise)
        else:
            is_free = "embed" in name or "latents" in name
            tensor.copy_(noise if is_free else 1.4 * noise * tensor[0].numel() ** -0.5)
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(presence)
    return model
