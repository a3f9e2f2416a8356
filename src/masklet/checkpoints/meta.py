"""Meta's ``.pt`` files: recognised by their tensors, which are renamed."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from masklet.checkpoints.damage import what_is
from masklet.config import Sam2Config, Sam2ImageEncoderConfig
from masklet.errors import CheckpointError

META_SIZES: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...], tuple[int, int], tuple[int, ...]]] = {
    # (channels, blocks per stage): (heads, global blocks, position grid, windows). The key follows from the tensors.
    (96, (1, 2, 7, 2)): (1, (5, 7, 9), (7, 7), (8, 4, 14, 7)),
    (96, (1, 2, 11, 2)): (1, (7, 10, 13), (7, 7), (8, 4, 14, 7)),
    (112, (2, 3, 16, 3)): (2, (12, 16, 20), (14, 14), (8, 4, 14, 7)),
    (144, (2, 6, 36, 4)): (2, (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}
"""Tiny, small, base-plus and large (SAM 2, appendix C)."""

_META_NAMES = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (
        r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^sam_mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^sam_mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    (r"\.gamma$", ".scale"),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.norm(\d?)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    # MLPs: Meta numbers all layers; here the first and the last have names.
    (r"((?:trunk|backbone)\.blocks\.\d+\.mlp|transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"((?:trunk|backbone)\.blocks\.\d+\.mlp|transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.0\.", r"\1.proj_in."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.1\.", r"\1.layers.0."),
    (r"(_mlps\.\d|_head|object_pointer_proj)\.layers\.2\.", r"\1.proj_out."),
]

_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.encoder\.(\d+)\.(weight|bias)$")
_POINTS = re.compile(r"^sam_prompt_encoder\.point_embeddings\.\d\.weight$")


def _our_name(name: str) -> str:
    if (match := _DOWNSAMPLER.match(name)) and int(match[1]) < 12:
        layer, part = divmod(int(match[1]), 3)  # convolution, norm, GELU
        return f"memory_encoder.mask_downsampler.layers.{layer}.{('conv', 'layer_norm')[part]}.{match[2]}"
    for pattern, replacement in _META_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# All errors that torch.load is known to raise on damaged files.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


def read_meta_file(path: Path) -> tuple[Sam2Config, dict[str, Tensor]]:
    """Reads one of Meta's files, or one with the same layout.

    Raises:
        CheckpointError: It is damaged, holds more than tensors, or is of another kind.
    """
    with path.open("rb") as file:
        is_safetensors = file.read(10)[8:] == b'{"'
    if is_safetensors or path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} holds only weights: expected its folder, with config.json, or a .pt file of Meta's"
        )
    try:
        # Only tensors and plain containers are loaded: a pickle that would run code is refused.
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: {what_is(path)}, or a pickle of more than tensors, which is not loaded since it could run code. "
            'Expected one of Meta\'s files, {"model": tensors}; save another one as that first'
        ) from error
    except _DAMAGE as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: {what_is(path)} ({first_line}). Expected a whole .pt file of Meta's; fetch or copy it again"
        ) from error
    tensors = payload.get("model", payload) if isinstance(payload, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f'{path} holds no state dict: expected {{"model": {{name: tensor}}}}')
    return config_from_meta(tensors, where=path), convert_meta(tensors)


def config_from_meta(tensors: Mapping[str, Tensor], *, where: str | os.PathLike[str]) -> Sam2Config:
    """The configuration of the release that has these tensors.

    Raises:
        CheckpointError: No release has them.
    """
    position = tensors.get("image_encoder.trunk.pos_embed")
    if position is None:
        what = "a SAM 1 model" if "image_encoder.pos_embed" in tensors else f"tensors like {next(iter(tensors))!r}"
        raise CheckpointError(
            f"{where} holds {what}: expected SAM 2 in Meta's layout (image_encoder.trunk.pos_embed, …)"
        )
    dim = position.shape[1] if position.ndim == 4 else 0
    pattern = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.norm2\.weight")
    widths = {int(m[1]): t.shape[0] for name, t in tensors.items() if (m := pattern.fullmatch(name))}
    blocks = tuple(sum(width == dim * 2**stage for width in widths.values()) for stage in range(4))
    if (dim, blocks) not in META_SIZES:
        raise CheckpointError(
            f"{where} has {dim} channels and {blocks} blocks per stage: expected tiny, small, base-plus or large "
            f"({', '.join(str(key) for key in META_SIZES)})"
        )
    return released_config(dim, blocks, is_v2_1="no_obj_embed_spatial" in tensors)


def released_config(dim: int, blocks: tuple[int, ...], *, is_v2_1: bool = True) -> Sam2Config:
    """Configuration of the release with these channels and blocks per stage, a key of ``META_SIZES``."""
    heads, global_blocks, grid, windows = META_SIZES[dim, blocks]
    return Sam2Config(
        is_v2_1=is_v2_1,
        image_encoder=Sam2ImageEncoderConfig(
            hidden_size=dim,
            num_attention_heads=heads,
            blocks_per_stage=blocks,
            global_attention_blocks=global_blocks,
            window_size_per_stage=windows,
            window_positional_embedding_background_size=grid,
        ),
    )


def convert_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of Meta's layout under the names of ``masklet.model``."""
    converted = {_our_name(name): t for name, t in tensors.items() if not _POINTS.match(name)}
    labels = sorted(name for name in tensors if _POINTS.match(name))
    if labels:
        converted["prompt_encoder.point_embed.weight"] = torch.cat([tensors[name] for name in labels])
    if (matrix := converted.get("shared_image_embedding.positional_embedding")) is not None:
        converted["prompt_encoder.shared_embedding.positional_embedding"] = matrix.clone()
    return converted
