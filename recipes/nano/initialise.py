"""Initial weights for training a narrow network from scratch."""

from __future__ import annotations

import math

from torch import nn

from masklet.model.mask_decoder import Attention
from masklet.model.sam2 import Sam2Model


def initialise(model: Sam2Model) -> None:
    """Sets initial weights, in place, such that the image influences the decoder's output from the first step.

    Small weights (0.02) suit wide networks. With them, the image embedding of a narrow network varies over the image by
    a tenth of the constant vectors that are added to it, and it takes hundreds of steps until masks depend on the image
    at all.
    """
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    for module in model.vision_encoder.modules():
        _preserve_variance(module)
    for module in model.vision_encoder.neck.modules():
        _preserve_variance(module, gain=0.3)  # a larger gain would drown the positions
    for module in (decoder.conv_s0, decoder.conv_s1):
        _preserve_variance(module)
    for embedding in (prompts.point_embed, prompts.not_a_point_embed, prompts.no_mask_embed):
        nn.init.normal_(embedding.weight, std=0.2)  # so would larger embeddings
    for name, module in decoder.transformer.named_modules():
        if isinstance(module, Attention):
            _preserve_variance(module.v_proj)
            _preserve_variance(module.o_proj)
            if "self_attn" not in name:
                # With equal projections, tokens and cells at the same position attend to each other.
                _preserve_variance(module.q_proj, gain=math.sqrt(2))
                module.k_proj.load_state_dict(module.q_proj.state_dict())


def _preserve_variance(module: nn.Module, gain: float = 1.0) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
