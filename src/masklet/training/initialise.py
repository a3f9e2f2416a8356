"""First weights for training from nothing; models made for loading or fine-tuning need none of this."""

from __future__ import annotations

import math

from torch import nn

from masklet.model.mask_decoder import Attention
from masklet.model.sam2 import Sam2Model


def initialise(model: Sam2Model) -> None:
    """Scale the first weights, in place, so that what the image says is heard in the decoder from the first step.

    With the small weights that suit wide networks (0.02), the image embedding of a narrow one varies over the image by
    a tenth of the constant vectors that are added to it, and hundreds of steps pass before masks
    follow the image at all.
    """
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    for module in model.vision_encoder.modules():
        _preserve_variance(module)
    for module in model.vision_encoder.neck.modules():
        _preserve_variance(module, gain=0.3)  # not so loud that positions drown
    for module in (decoder.conv_s0, decoder.conv_s1):
        _preserve_variance(module)
    for embedding in (prompts.point_embed, prompts.not_a_point_embed, prompts.no_mask_embed):
        nn.init.normal_(embedding.weight, std=0.2)  # nor these
    for name, module in decoder.transformer.named_modules():
        if isinstance(module, Attention):
            _preserve_variance(module.v_proj)
            _preserve_variance(module.o_proj)
            if "self_attn" not in name:
                # Equal projections make a token look where it lies, and a cell at the token that lies on it.
                _preserve_variance(module.q_proj, gain=math.sqrt(2))
                module.k_proj.load_state_dict(module.q_proj.state_dict())


def _preserve_variance(module: nn.Module, gain: float = 1.0) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
