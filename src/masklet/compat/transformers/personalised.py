"""The mask decoder with PerSAM's two additions, which transformers' classes take as well.

Source: Personalize segment anything with one shot (arXiv 2305.03048), section 3.2: target-guided attention and
target-semantic prompting.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from masklet.model.layers import join_heads, split_heads
from masklet.model.mask_decoder import Attention, DecodedMasks, TwoWayTransformer
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEmbeddings


def decode_personalised(
    decode: Callable[..., DecodedMasks],
    transformer: TwoWayTransformer,
    features: Features,
    image_pos: Tensor,
    prompts: PromptEmbeddings,
    similarity: Tensor | None,
    target: Tensor | None,
    *,
    multimask: bool,
) -> DecodedMasks:
    """Decodes with ``attention_similarity`` and ``target_embedding`` of ``Sam2Model.forward``, where they are given.

    Args:
        decode: ``MaskDecoder.forward``.
        transformer: Transformer of the decoder.
        features: As in ``MaskDecoder.forward``.
        image_pos: As there.
        prompts: As there.
        similarity: Added to the logits of the attention from tokens to the image.
        target: Added to the tokens.
        multimask: As there.
    """
    with ExitStack() as hooks:
        layers: list[Any] = list(transformer.layers)
        # The tokens of the first layer are their own positions, which therefore carry the target as well.
        if target is not None:
            for module in (transformer, *layers[1:]):
                hooks.enter_context(_target_added(module, target))
        if similarity is not None:
            for layer in layers:
                hooks.enter_context(_guided(layer.cross_attn_token_to_image, similarity))
        return decode(features, image_pos, prompts, multimask=multimask)


def _target_added(layer: nn.Module, target: Tensor) -> RemovableHandle:
    """Adds the target's embedding to the tokens that a module receives first."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0] + target, *inputs[1:]

    return layer.register_forward_pre_hook(add)


def _guided(attention: Attention, similarity: Tensor) -> RemovableHandle:
    """Adds similarities to the logits of an attention from tokens to the image."""

    def attend(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> Tensor:
        q, k, v = (
            split_heads(project(x), attention.heads)
            for project, x in zip((attention.q_proj, attention.k_proj, attention.v_proj), inputs, strict=False)
        )
        batch, objects = q.shape[:2]
        k, v = (x.expand(-1, objects, -1, -1, -1).flatten(0, 1) for x in (k, v))
        bias = similarity.to(q.dtype)
        out = F.scaled_dot_product_attention(q.flatten(0, 1), k, v, attn_mask=bias)
        return attention.o_proj(join_heads(out.unflatten(0, (batch, objects))))

    return attention.register_forward_hook(attend)
