"""The parts of a network by name: what learns, and how fast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from masklet.model.sam2 import Sam2Model
from masklet.training.muon import Muon

PARTS = {
    # Before the decoder, as fine maps leave the encoder through two of its convolutions.
    "image_encoder": ("vision_encoder.", "mask_decoder.conv_s0.", "mask_decoder.conv_s1."),
    "object_score": ("mask_decoder.pred_obj_score_head.",),
    "mask_decoder": ("mask_decoder.",),
    "prompt_encoder": ("prompt_encoder.", "shared_image_embedding.", "no_memory_embedding"),
    "memory": (
        "memory_attention.",
        "memory_encoder.",
        "mask_downsample.",
        "object_pointer_proj.",
        "memory_temporal_positional_encoding",
        "no_object_pointer",
        "no_memory_positional_encoding",
        "occlusion_spatial_embedding_parameter",
        "temporal_positional_encoding_projection_layer.",
    ),
}
"""What the names of their weights begin with; the first that fits counts."""
TRAINED = {
    "everything": tuple(PARTS),
    "frozen_encoder": ("object_score", "mask_decoder", "prompt_encoder", "memory"),
    "decoder": ("object_score", "mask_decoder"),
    # Images' masks stay as they are; whether an object is there is learned from videos alone.
    "memory": ("object_score", "memory"),
    "lora": (),
}
ADAPTER = ".lora_"
"""In the names of adapters' weights."""
BETAS = (0.9, 0.95)


def part_of(name: str) -> str:
    """The part that a weight, or an adapter of it, belongs to."""
    return next(part for part, beginnings in PARTS.items() if name.startswith(beginnings))


def learns(name: str, trained: str) -> bool:
    """Whether a weight learns, by one of the names in ``TRAINED``."""
    return ADAPTER in name or part_of(name) in TRAINED[trained]


def encoder_learns(model: Sam2Model) -> bool:
    """Whether any weight of the image encoder does at the moment."""
    return any(weight.requires_grad and part_of(name) == "image_encoder" for name, weight in model.named_parameters())


def rate_of(name: str, blocks: int, rates: Mapping[str, float], layer_decay: float) -> float:
    """Factor on the learning rate of a weight.

    Args:
        name: Of the weight.
        blocks: Of the image encoder.
        rates: Factors by part.
        layer_decay: A block's rate, in rates of the one after it; what comes before the blocks counts as one more.
    """
    rate = rates.get(part_of(name), 1.0)
    if not name.startswith("vision_encoder.backbone."):
        return rate
    block = re.match(r"vision_encoder\.backbone\.blocks\.(\d+)\.", name)
    depth = int(block[1]) if block else -1
    return rate * layer_decay ** (blocks - 1 - depth)


def make_optimizers(
    model: Sam2Model,
    extra: nn.Module | None,
    *,
    kind: str,
    weight_decay: float,
    rates: Mapping[str, float],
    layer_decay: float,
) -> list[Optimizer]:
    """Optimizers of all weights that learn; each of their groups has a ``factor`` on the learning rate.

    Args:
        model: The network.
        extra: A module of training alone, if any.
        kind: ``adamw``, or ``muon`` for the matrices of linear maps and AdamW for all else: from the same images it
            learns more.
        weight_decay: Of all that has two dimensions or more.
        rates: Factors by part.
        layer_decay: See ``rate_of``.
    """
    blocks = len(model.vision_encoder.backbone.blocks)
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        is_muon = kind == "muon" and id(weight) in linear
        key = (is_muon, weight.ndim > 1, rate_of(name, blocks, rates, layer_decay))
        groups.setdefault(key, []).append(weight)
    if extra is not None:
        groups.setdefault((False, False, 1.0), []).extend(extra.parameters())

    def listed(is_muon: bool, part: slice = slice(None)) -> list[dict[str, Any]]:
        return [
            {"params": weights[part], "factor": factor, "weight_decay": weight_decay if decays else 0.0}
            for (of_muon, decays, factor), weights in groups.items()
            if of_muon == is_muon and weights[part]
        ]

    optimizers: list[Optimizer] = [AdamW(listed(False), betas=BETAS)]
    if kind == "muon":
        # Two, as two threads may take their steps at the same time.
        optimizers += [Muon(listed(True, half)) for half in (slice(0, None, 2), slice(1, None, 2))]
    return optimizers
