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
    follow the picture at all.
    """
    seeing = [model.vision_encoder, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1]
    for module in (module for part in seeing for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=1 / math.sqrt(fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.prompt_encoder.no_mask_embed.weight, std=0.02)
    for name, module in model.mask_decoder.named_modules():
        if isinstance(module, Attention) and "self_attn" not in name:
            # Equal projections make a token look where it lies, and a cell at the token that lies on it, from the start.
            nn.init.normal_(module.q_proj.weight, std=math.sqrt(2 / module.q_proj.in_features))
            module.k_proj.load_state_dict(module.q_proj.state_dict())
