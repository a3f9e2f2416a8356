"""Which weights are trained, how fast, and the default optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import AdamW, Optimizer

from masklet.model.edgetam.repvit import Downsample, RepVitBlock
from masklet.model.hiera import HieraBlock
from masklet.model.sam2 import Sam2Model

if TYPE_CHECKING:
    from masklet.training.config import TrainingConfig

COMPONENTS = {
    # First, because two convolutions of the decoder project the encoder's fine maps.
    "image_encoder": ("vision_encoder.", "mask_decoder.conv_s0.", "mask_decoder.conv_s1."),
    "object_score": ("mask_decoder.pred_obj_score_head.",),
    "mask_decoder": ("mask_decoder.",),
    "prompt_encoder": ("prompt_encoder.", "shared_image_embedding.", "no_memory_embedding"),
    "memory": (
        "memory_attention.",
        "memory_encoder.",
        "spatial_perceiver.",
        "mask_downsample.",
        "object_pointer_proj.",
        "memory_temporal_positional_encoding",
        "no_object_pointer",
        "no_memory_positional_encoding",
        "occlusion_spatial_embedding_parameter",
        "temporal_positional_encoding_projection_layer.",
    ),
}
"""Components of a network, by prefixes of the names of their weights; the first match counts."""
TRAINABLE = {
    "everything": tuple(COMPONENTS),
    "frozen_encoder": ("object_score", "mask_decoder", "prompt_encoder", "memory"),
    "decoder": ("object_score", "mask_decoder"),
    # Masks of images stay as they are. Only videos teach whether an object is present.
    "memory": ("object_score", "memory"),
    "lora": (),
}
"""Choices of ``Stage.train``: the components that each of them trains."""
ADAPTER = ".lora_"
"""Part of the names of adapters' weights."""
BETAS = (0.9, 0.95)
"""Decay rates of AdamW's moment estimates."""

OptimizerFactory = Callable[[Sam2Model, "nn.Module | None", "TrainingConfig"], list[Optimizer]]
"""Makes optimizers for the trained weights of a model and of an extra loss, from ``parameter_groups``."""


def component_of(name: str) -> str:
    """The component that a weight, or an adapter of it, belongs to."""
    return next(component for component, prefixes in COMPONENTS.items() if name.startswith(prefixes))


def is_trained(name: str, choice: str) -> bool:
    """Whether a weight is trained under a choice of ``Stage.train``."""
    return ADAPTER in name or component_of(name) in TRAINABLE[choice]


def trains_encoder(model: Sam2Model) -> bool:
    """Whether any weight of the image encoder is currently trained."""
    return any(
        weight.requires_grad and component_of(name) == "image_encoder" for name, weight in model.named_parameters()
    )


def encoder_blocks(model: Sam2Model) -> dict[str, nn.Module]:
    """The blocks of the image encoder in their order, by the prefix of their weights' names.

    In EdgeTAM, the layers between two stages count as a block.
    """
    kinds = HieraBlock | RepVitBlock | Downsample
    modules = model.vision_encoder.named_modules(prefix="vision_encoder")
    return {f"{name}.": m for name, m in modules if isinstance(m, kinds) and not name.endswith(".pre_block")}


def rate_factor(name: str, blocks: Collection[str], rates: Mapping[str, float], layer_decay: float) -> float:
    """Factor on the learning rate of a weight.

    Args:
        name: Name of the weight.
        blocks: From ``encoder_blocks``.
        rates: Factors by component.
        layer_decay: Ratio of the rates of a block and the block after it. Layers before the first block count as one
            more block.
    """
    rate = rates.get(component_of(name), 1.0)
    if not name.startswith("vision_encoder.backbone."):
        return rate
    depth = next((depth for depth, block in enumerate(blocks) if name.startswith(block)), -1)
    return rate * layer_decay ** (len(blocks) - 1 - depth)


def parameter_groups(model: Sam2Model, extra: nn.Module | None, config: TrainingConfig) -> list[dict[str, Any]]:
    """Groups of all trained weights, for optimizers.

    Args:
        model: The network.
        extra: Module of an extra loss, if any.
        config: Configuration of the run.

    Returns:
        Dictionaries with ``params``, ``weight_decay`` (zero for vectors and the extra module) and ``factor``, by which
        the trainer multiplies the learning rate.
    """
    blocks = encoder_blocks(model)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            factor = rate_factor(name, blocks, config.rates, config.layer_decay)
            groups.setdefault((weight.ndim > 1, factor), []).append(weight)
    if extra is not None:
        groups.setdefault((False, 1.0), []).extend(extra.parameters())
    return [
        {"params": weights, "factor": factor, "weight_decay": config.weight_decay if decays else 0.0}
        for (decays, factor), weights in groups.items()
    ]


def adamw(model: Sam2Model, extra: nn.Module | None, config: TrainingConfig) -> list[Optimizer]:
    """AdamW for all trained weights; the default ``OptimizerFactory``."""
    return [AdamW(parameter_groups(model, extra, config), betas=BETAS)]
