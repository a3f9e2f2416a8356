"""EdgeTAM's files: its part of transformers' ``config.json``, and the names of its tensors in the authors' ``.pt``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from masklet.checkpoints.renaming import renamed, rule
from masklet.config import RepVitConfig, Sam2Config, SpatialPerceiverConfig, edgetam_config
from masklet.errors import CheckpointError, ConfigError
from masklet.numbers import shown

FIRST_TENSOR = "image_encoder.trunk.body.stem.conv1.c.weight"
ARCHITECTURE = "repvit_m1"
"""timm's name of the trunk."""

_M1 = RepVitConfig()

_PERCEIVER_NAMES = (
    ("attn.norm_x", "layer_norm_input"),
    ("attn.norm_latents", "layer_norm_latents"),
    ("self_attn.layer_norm", "layer_norm_self"),
    *(
        (f"{theirs}.{part}", f"{ours}.{name}")
        for theirs, ours in (("attn", "cross_attention"), ("self_attn", "self_attention"))
        for part, name in (("to_q", "q_proj"), ("to_kv", "kv_proj"), ("to_out", "o_proj"))
    ),
    *(
        (f"{theirs}.{number}", f"{ours}.{name}")
        for theirs, ours in (("ff", "mlp"), ("self_ff", "self_mlp"))
        for number, name in ((0, "layer_norm"), (1, "up_proj"), (3, "down_proj"))
    ),
)
_NAMES = [
    # The authors' name and masklet's, after SAM 2's table has been applied.
    ("^vision_encoder.backbone.body.", "^vision_encoder.backbone.timm_model."),
    ("^spatial_perceiver.latents$", "^spatial_perceiver.latents_1d$"),
    *((f"^spatial_perceiver.layers.#.{a}.", f"^spatial_perceiver.layers.#.{b}.") for a, b in _PERCEIVER_NAMES),
    ("^memory_attention.layers.#.linear1.", "^memory_attention.layers.#.mlp.up_proj."),
    ("^memory_attention.layers.#.linear2.", "^memory_attention.layers.#.mlp.down_proj."),
]
_TO_OURS = [rule(theirs, ours) for theirs, ours in _NAMES]
_TO_AUTHORS = [rule(ours, theirs) for theirs, ours in reversed(_NAMES)]
_KEYS, _VALUES, _BOTH = ".k_proj.", ".v_proj.", ".kv_proj."
"""In the authors' files, the perceiver's keys and values are one matrix, with the keys in the upper half."""


def is_edgetam_file(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors in the authors' layout are those of an EdgeTAM."""
    return FIRST_TENSOR in tensors


def from_edgetam(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors, already renamed by SAM 2's table, under the names of ``masklet.model``."""
    converted: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        name = renamed(theirs, _TO_OURS)
        if _BOTH in name and tensor.ndim and len(tensor) > 1:
            # Cloned, since views of one tensor cannot be saved.
            for part, half in zip((_KEYS, _VALUES), tensor.chunk(2), strict=True):
                converted[name.replace(_BOTH, part)] = half.clone()
        else:
            converted[name] = tensor
    return converted


def to_edgetam(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``from_edgetam``. Names of a SAM 2 stay as they are."""
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("spatial_perceiver.") and _KEYS in name:
            both = torch.cat([tensor, tensors[name.replace(_KEYS, _VALUES)]])
            converted[edgetam_name(name.replace(_KEYS, _BOTH))] = both
        elif not (name.startswith("spatial_perceiver.") and _VALUES in name):
            converted[edgetam_name(name)] = tensor
    return converted


def edgetam_name(name: str) -> str:
    """The authors' name of a tensor, before SAM 2's table is applied. Names of a SAM 2 stay as they are."""
    return renamed(name, _TO_AUTHORS)


def config_from_edgetam_file(tensors: Mapping[str, Tensor], *, where: Any) -> Sam2Config:
    """The configuration of tensors in the authors' layout.

    Raises:
        CheckpointError: The trunk is not a RepViT, or the tensors of its memory are not an EdgeTAM's.
    """
    pattern = re.compile(r"image_encoder\.trunk\.body\.stages_(\d)\.blocks\.(\d+)\.channel_mixer\.conv2\.bn\.weight")
    found = {(int(m[1]), int(m[2])): len(t) for name, t in tensors.items() if t.ndim and (m := pattern.fullmatch(name))}
    depths = tuple(sum(stage == block[0] for block in found) for stage in range(4))
    latents = [tensors.get(f"spatial_perceiver.{name}") for name in ("latents", "latents_2d")]
    try:
        return edgetam_config(
            is_v2_1="no_obj_embed_spatial" in tensors,
            image_encoder=RepVitConfig(
                embed_dim_per_stage=tuple(found.get((stage, 0), 0) for stage in range(4)), blocks_per_stage=depths
            ),
            perceiver=SpatialPerceiverConfig(
                **{
                    name: len(rows)
                    for name, rows in zip(("num_latents", "num_latents_2d"), latents, strict=True)
                    if rows is not None and rows.ndim
                }
            ),
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} is not an EdgeTAM with a RepViT that is known: {error}") from error


def repvit_json(encoder: RepVitConfig) -> dict[str, Any]:
    """The section ``backbone_config``, which transformers hands to timm."""
    arguments: dict[str, Any] = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    if encoder != _M1:
        arguments |= {"embed_dim": list(encoder.embed_dim_per_stage), "depth": list(encoder.blocks_per_stage)}
    # transformers does not read the section without a number of classes. Features have none.
    return {"model_type": "timm_wrapper", "architecture": ARCHITECTURE, "num_classes": 0, "model_args": arguments}


def repvit_from_json(backbone: Mapping[str, Any]) -> RepVitConfig:
    """The reverse of ``repvit_json``.

    Raises:
        ConfigError: The trunk is another network.
    """
    architecture = backbone.get("architecture", ARCHITECTURE)
    if not isinstance(architecture, str) or architecture.split(".")[0].split("/")[-1] != ARCHITECTURE:
        raise ConfigError(f"architecture is {shown(architecture)}: expected {ARCHITECTURE}, the trunk of EdgeTAM")
    arguments = backbone.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"model_args is {shown(arguments)}: expected a JSON object")
    names = {"embed_dim_per_stage": "embed_dim", "blocks_per_stage": "depth"}
    return RepVitConfig(**{ours: tuple(arguments[theirs]) for ours, theirs in names.items() if theirs in arguments})


def memory_json(sam2: Mapping[str, Any], config: Sam2Config) -> dict[str, Any]:
    """The keys of the memory of an EdgeTAM, given those of a SAM 2 with the same numbers."""
    assert config.perceiver is not None
    width, side = config.memory_encoder.output_channels, config.perceiver.side
    return {key.replace("attention_feed_forward", "attention_mlp"): value for key, value in sam2.items()} | {
        "memory_attention_rope_k_sizes": [side, side],
        "perceiver_resampler_num_latents": config.perceiver.num_latents,
        "perceiver_resampler_num_latents_2d": config.perceiver.num_latents_2d,
        "perceiver_resampler_hidden_size": width,
        "perceiver_resampler_mlp_intermediate_size": 4 * width,
        "perceiver_resampler_num_attention_heads": 1,
        "perceiver_resampler_attention_head_dim": width,
        "perceiver_resampler_num_layers": 2,
    }


def perceiver_from_json(content: Mapping[str, Any]) -> SpatialPerceiverConfig:
    """The perceiver of a ``config.json``."""
    names = ("num_latents", "num_latents_2d")
    prefix = "perceiver_resampler_"
    return SpatialPerceiverConfig(**{name: content[prefix + name] for name in names if prefix + name in content})
