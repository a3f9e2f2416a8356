"""transformers' ``config.json``, and which of its networks this package can build."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from masklet.checkpoints.edgetam import memory_json, perceiver_from_json, repvit_from_json, repvit_json
from masklet.config import (
    NUM_MULTIMASK_OUTPUTS,
    STRIDES,
    RepVitConfig,
    Sam2Config,
    Sam2EverythingConfig,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import CheckpointError, ConfigError
from masklet.numbers import shown


def config_to_json(config: Sam2Config) -> dict[str, Any]:
    """Content of ``config.json``, as transformers names and nests it, constants included.

    The section ``everything`` is masklet's own; transformers keeps it and does not use it.
    """
    return {
        **_kind_json(config),
        "vision_config": _vision_json(config),
        "prompt_encoder_config": {
            "hidden_size": config.hidden_size,
            "image_size": config.image_size,
            "patch_size": STRIDES[2],
            "mask_input_channels": config.prompt_encoder.mask_input_channels,
            "num_point_embeddings": 4,
            "scale": 1,
            "hidden_act": config.prompt_encoder.hidden_act,
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "hidden_size": config.hidden_size,
            "hidden_act": "gelu",
            "mlp_dim": config.mask_decoder.mlp_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": config.mask_decoder.num_attention_heads,
            "attention_downsample_rate": 2,
            "num_multimask_outputs": NUM_MULTIMASK_OUTPUTS,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": config.hidden_size,
            "dynamic_multimask_via_stability": config.mask_decoder.dynamic_multimask_via_stability,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        **(_all_memory_json(config) if config.has_memory else {}),
        "everything": asdict(config.everything),
    }


def _kind_json(config: Sam2Config) -> dict[str, Any]:
    """The names of the model."""
    family, name = ("edgetam", "EdgeTam") if config.is_edgetam else ("sam2", "Sam2")
    return {
        "architectures": [f"{name}VideoModel" if config.has_memory else f"{name}Model"],
        "model_type": f"{family}_video" if config.has_memory else family,
    }


def _vision_json(config: Sam2Config) -> dict[str, Any]:
    """The image encoder."""
    encoder, side = config.image_encoder, config.image_size
    is_repvit = isinstance(encoder, RepVitConfig)
    return {
        "model_type": "edgetam_vision_model" if is_repvit else "sam2_vision_model",
        "backbone_config": repvit_json(encoder) if isinstance(encoder, RepVitConfig) else _hiera_json(encoder, side),
        "backbone_channel_list": list(encoder.embed_dim_per_stage[::-1]),
        "backbone_feature_sizes": [[side // stride] * 2 for stride in STRIDES],
        "fpn_hidden_size": config.hidden_size,
        "fpn_kernel_size": 1,
        "fpn_stride": 1,
        "fpn_padding": 0,
        "fpn_top_down_levels": [2, 3],
        "num_feature_levels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def _hiera_json(encoder: Sam2ImageEncoderConfig, side: int) -> dict[str, Any]:
    return {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": encoder.hidden_size,
        "num_attention_heads": encoder.num_attention_heads,
        "num_channels": 3,
        "image_size": [side, side],
        "patch_kernel_size": [7, 7],
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
        "query_stride": [2, 2],
        "num_query_pool_stages": 3,
        "window_positional_embedding_background_size": list(encoder.window_positional_embedding_background_size),
        "blocks_per_stage": list(encoder.blocks_per_stage),
        "embed_dim_per_stage": list(encoder.embed_dim_per_stage),
        "num_attention_heads_per_stage": list(encoder.num_attention_heads_per_stage),
        "window_size_per_stage": list(encoder.window_size_per_stage),
        "global_attention_blocks": list(encoder.global_attention_blocks),
        "mlp_ratio": 4.0,
        "hidden_act": encoder.hidden_act,
        "layer_norm_eps": 1e-6,
    }


def _all_memory_json(config: Sam2Config) -> dict[str, Any]:
    """The memory of either family."""
    of_sam2 = _memory_json(config)
    return memory_json(of_sam2, config) if config.is_edgetam else of_sam2


def _memory_json(config: Sam2Config) -> dict[str, Any]:
    """The memory attention and the memory encoder, which stand at the top level."""
    dim, side = config.hidden_size, config.image_size
    return {
        "image_size": side,
        "num_maskmem": config.num_maskmem,
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "enable_occlusion_spatial_embedding": config.is_v2_1,
        "enable_temporal_pos_encoding_for_object_pointers": config.is_v2_1,
        "multimask_output_in_sam": True,
        "multimask_min_pt_num": 0,
        "multimask_max_pt_num": 1,
        "multimask_output_for_tracking": True,
        "max_object_pointers_in_encoder": 16,
        "memory_attention_hidden_size": dim,
        "memory_attention_num_layers": config.memory_attention.num_layers,
        "memory_attention_num_attention_heads": 1,
        "memory_attention_downsample_rate": 1,
        "memory_attention_feed_forward_hidden_size": config.memory_attention.feed_forward_hidden_size,
        "memory_attention_feed_forward_hidden_act": "relu",
        "memory_attention_rope_feat_sizes": [side // STRIDES[2]] * 2,
        "memory_encoder_hidden_size": dim,
        "memory_encoder_output_channels": config.memory_encoder.output_channels,
        "mask_downsampler_embed_dim": dim,
        "mask_downsampler_kernel_size": 3,
        "mask_downsampler_stride": 2,
        "mask_downsampler_padding": 1,
        "mask_downsampler_total_stride": STRIDES[2],
        "mask_downsampler_hidden_act": "gelu",
        "memory_fuser_num_layers": 2,
        "memory_fuser_embed_dim": dim,
        "memory_fuser_intermediate_dim": 4 * dim,
        "memory_fuser_kernel_size": 7,
        "memory_fuser_padding": 3,
        "memory_fuser_hidden_act": "gelu",
    }


EDGETAM_TYPES = ("edgetam", "edgetam_video")
MODEL_TYPES = ("sam2", "sam2_video", *EDGETAM_TYPES)
NOT_COMPARED = {
    "architectures",
    "model_type",
    "image_size",
    "backbone_feature_sizes",
    "memory_attention_rope_feat_sizes",
    "vision_config.hidden_act",
    "vision_config.backbone_config.architecture",
    "vision_config.backbone_config.num_classes",
    "mask_decoder_config.hidden_act",
}
"""Keys that name a class, sizes that follow from the input here, and what transformers does not use."""


def config_from_json(content: dict[str, Any], *, has_memory: bool, where: str | os.PathLike[str]) -> Sam2Config:
    """Reads a ``config.json``. Keys that are missing have transformers' defaults, which are those of ``Sam2Config``.

    Raises:
        CheckpointError: It describes another kind of model, or a SAM 2 that this network cannot be; the error names the
            key.
    """
    if (kind := content.get("model_type")) not in MODEL_TYPES:
        *others, last = MODEL_TYPES
        expected = f"{', '.join(others)} or {last}"
        raise CheckpointError(f"{where} describes a model of type {shown(kind)}: expected {expected}")
    try:
        config = _read_config(content, has_memory=has_memory)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    # The file must ask for what this network would write for itself.
    if differences := _differences(config_to_json(config), content):
        raise CheckpointError(f"{where} asks for a SAM 2 that masklet does not know: {'; '.join(differences[:3])}")
    return config


def _read_config(content: dict[str, Any], *, has_memory: bool) -> Sam2Config:
    backbone = _section(_section(content, "vision_config"), "backbone_config")
    prompts, decoder = _section(content, "prompt_encoder_config"), _section(content, "mask_decoder_config")
    side = prompts.get("image_size")
    if isinstance(side, list | tuple) and len(set(side)) == 1:
        prompts = prompts | {"image_size": side[0]}
    is_edgetam = content["model_type"] in EDGETAM_TYPES
    return Sam2Config(
        **_chosen(prompts, "image_size", "hidden_size"),
        **_chosen(content, "num_maskmem", is_v2_1="enable_occlusion_spatial_embedding"),
        has_memory=has_memory,
        image_encoder=repvit_from_json(backbone) if is_edgetam else _read_hiera(backbone),
        prompt_encoder=Sam2PromptEncoderConfig(**_chosen(prompts, "mask_input_channels", "hidden_act")),
        mask_decoder=Sam2MaskDecoderConfig(
            **_chosen(decoder, "mlp_dim", "num_attention_heads", "dynamic_multimask_via_stability")
        ),
        memory_attention=_read_memory_attention(content, is_edgetam=is_edgetam),
        memory_encoder=Sam2MemoryEncoderConfig(**_chosen(content, output_channels="memory_encoder_output_channels")),
        perceiver=perceiver_from_json(content) if is_edgetam else None,
        everything=Sam2EverythingConfig(**_section(content, "everything")),
    )


def _read_hiera(backbone: dict[str, Any]) -> Sam2ImageEncoderConfig:
    return Sam2ImageEncoderConfig(
        **_chosen(
            backbone,
            "hidden_size",
            "num_attention_heads",
            "blocks_per_stage",
            "global_attention_blocks",
            "window_size_per_stage",
            "window_positional_embedding_background_size",
            "hidden_act",
        )
    )


def _read_memory_attention(content: dict[str, Any], *, is_edgetam: bool) -> Sam2MemoryAttentionConfig:
    width = "memory_attention_mlp_hidden_size" if is_edgetam else "memory_attention_feed_forward_hidden_size"
    chosen = _chosen(content, num_layers="memory_attention_num_layers", feed_forward_hidden_size=width)
    return Sam2MemoryAttentionConfig(**({"num_layers": 2} if is_edgetam else {}) | chosen)


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(inner := content.get(name, {}), dict):
        raise ConfigError(f"{name} is {shown(inner)}: expected a JSON object")
    return inner


def _chosen(content: dict[str, Any], *same: str, **renamed: str) -> dict[str, Any]:
    """The values of some keys, those that are there: under the same name, or under one of ours."""
    names = {**{name: name for name in same}, **renamed}
    return {ours: content[theirs] for ours, theirs in names.items() if theirs in content}


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Descriptions of the keys of both whose values differ."""
    found = []
    for key in sorted(ours.keys() & theirs.keys() - NOT_COMPARED):
        if f"{prefix}{key}" in NOT_COMPARED or _is_same_pair(ours[key], theirs[key]):
            continue
        if isinstance(ours[key], dict) and isinstance(theirs[key], dict):
            found += _differences(ours[key], theirs[key], f"{prefix}{key}.")
        elif ours[key] != theirs[key]:
            found.append(f"{prefix}{key} is {shown(theirs[key])}, expected {shown(ours[key])}")
    return found


def _is_same_pair(pair: Any, number: Any) -> bool:
    """Whether a setting that is a pair here is written as one number, or the other way round."""
    if isinstance(number, list | tuple) and isinstance(pair, int):
        pair, number = number, pair
    return isinstance(pair, list | tuple) and not isinstance(number, bool) and list(pair) == [number] * 2
