"""Meta's ``.pt`` files: recognised by their tensors, which are renamed."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from masklet.checkpoints.damage import what_is
from masklet.checkpoints.edgetam import FIRST_TENSOR as FIRST_EDGETAM_TENSOR
from masklet.checkpoints.edgetam import (
    config_from_edgetam_file,
    edgetam_name,
    from_edgetam,
    is_edgetam_file,
    to_edgetam,
)
from masklet.checkpoints.renaming import renamed, rule
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

FIRST_TENSOR = "image_encoder.trunk.pos_embed"
SHARED_MATRIX = "shared_image_embedding.positional_embedding"
MATRIX_COPY = "prompt_encoder.shared_embedding.positional_embedding"
POINT_EMBEDDINGS = "prompt_encoder.point_embed.weight"
STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
"""Where Meta's files, Lightning and the usual training loops keep the state dict."""

_NAMES = [
    # Meta's name and masklet's. Applied in order, and in reverse order to convert back.
    (".norm.", ".layer_norm."),
    (".norm#.", ".layer_norm#."),
    (".norm_final_attn.", ".layer_norm_final_attn."),
    (".out_proj.", ".o_proj."),
    (".gamma", ".scale"),
    (".dwconv.", ".depthwise_conv."),
    (".pwconv#.", ".pointwise_conv#."),
    (".patch_embed.proj.", ".patch_embed.projection."),
    # MLPs: Meta numbers all layers; here the first and the last have names.
    ("trunk.blocks.#.mlp.layers.0.", "trunk.blocks.#.mlp.proj_in."),
    ("trunk.blocks.#.mlp.layers.1.", "trunk.blocks.#.mlp.proj_out."),
    ("transformer.layers.#.mlp.layers.0.", "transformer.layers.#.mlp.proj_in."),
    ("transformer.layers.#.mlp.layers.1.", "transformer.layers.#.mlp.proj_out."),
    *(
        (f"{mlp}.layers.{theirs}.", f"{mlp}.{ours}.")
        for mlp in ("_mlps.#", "_head", "obj_ptr_proj")
        for theirs, ours in enumerate(("proj_in", "layers.0", "proj_out"))
    ),
    ("^image_encoder.trunk.", "^vision_encoder.backbone."),
    ("^image_encoder.neck.convs.#.conv.", "^vision_encoder.neck.convs.#."),
    ("^sam_prompt_encoder.", "^prompt_encoder."),
    ("^sam_mask_decoder.", "^mask_decoder."),
    ("^prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", f"^{SHARED_MATRIX}"),
    *(
        (f"^prompt_encoder.mask_downscaling.{theirs}.", f"^prompt_encoder.mask_embed.{ours}.")
        for theirs, ours in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
    ),
    ("^mask_decoder.output_upscaling.0.", "^mask_decoder.upscale_conv1."),
    ("^mask_decoder.output_upscaling.1.", "^mask_decoder.upscale_layer_norm."),
    ("^mask_decoder.output_upscaling.3.", "^mask_decoder.upscale_conv2."),
    *(  # convolution, norm, GELU
        (f".mask_downsampler.encoder.{3 * layer + place}.", f".mask_downsampler.layers.{layer}.{part}.")
        for layer in range(4)
        for place, part in enumerate(("conv", "layer_norm"))
    ),
    (".mask_downsampler.encoder.12.", ".mask_downsampler.final_conv."),
    ("^memory_encoder.pix_feat_proj.", "^memory_encoder.feature_projection."),
    ("^memory_encoder.o_proj.", "^memory_encoder.projection."),
    ("^memory_encoder.fuser.", "^memory_encoder.memory_fuser."),
    ("^obj_ptr_proj.", "^object_pointer_proj."),
    ("^obj_ptr_tpos_proj.", "^temporal_positional_encoding_projection_layer."),
    ("^no_mem_embed", "^no_memory_embedding"),
    ("^no_mem_pos_enc", "^no_memory_positional_encoding"),
    ("^no_obj_ptr", "^no_object_pointer"),
    ("^no_obj_embed_spatial", "^occlusion_spatial_embedding_parameter"),
    ("^maskmem_tpos_enc", "^memory_temporal_positional_encoding"),
]


_TO_OURS = [rule(theirs, ours) for theirs, ours in _NAMES]
_TO_META = [rule(ours, theirs) for theirs, ours in reversed(_NAMES)]
_POINTS = re.compile(r"^sam_prompt_encoder\.point_embeddings\.\d\.weight$")


# All errors that torch.load is known to raise on damaged files.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


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
    tensors = without_wrappers(payload)
    if tensors is None:
        raise CheckpointError(f'{path} holds no state dict: expected {{"model": {{name: tensor}}}}')
    return config_from_meta(tensors, where=path), convert_meta(tensors)


def without_wrappers(payload: object) -> dict[str, Tensor] | None:
    """The state dict of a training checkpoint, without the prefixes that wrappers such as DDP give all names.

    Args:
        payload: What ``torch.load`` returned: a state dict, or a dict that holds one.

    Returns:
        None if there is no state dict. Where names of the network have a prefix, other tensors, such as those of a
        loss, are left out.
    """
    if not isinstance(payload, dict):
        return None
    tensors = next((payload[key] for key in STATE_DICT_KEYS if key in payload), payload)
    if not isinstance(tensors, dict) or not tensors or not all(map(is_named_tensor, tensors.items())):
        return None
    prefixes = [
        name.removesuffix(first)
        for name in tensors
        for first in (FIRST_TENSOR, FIRST_EDGETAM_TENSOR)
        if name.endswith("." + first)
    ]
    if len(prefixes) != 1:
        return tensors
    return {name.removeprefix(prefixes[0]): t for name, t in tensors.items() if name.startswith(prefixes[0])}


def is_named_tensor(item: tuple[object, object]) -> bool:
    """Whether an item of a dict belongs to a state dict."""
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor)


def config_from_meta(tensors: Mapping[str, Tensor], *, where: str | os.PathLike[str]) -> Sam2Config:
    """The configuration of the release that has these tensors.

    Raises:
        CheckpointError: No release has them.
    """
    if is_edgetam_file(tensors):
        return config_from_edgetam_file(tensors, where=where)
    position = tensors.get(FIRST_TENSOR)
    if position is None:
        what = "a SAM 1 model" if "image_encoder.pos_embed" in tensors else f"tensors like {next(iter(tensors))!r}"
        raise CheckpointError(f"{where} holds {what}: expected SAM 2 in Meta's layout ({FIRST_TENSOR}, …)")
    dim = position.shape[1] if position.ndim == 4 else 0
    pattern = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.norm2\.weight")
    widths = {int(m[1]): t.shape[0] for name, t in tensors.items() if t.ndim and (m := pattern.fullmatch(name))}
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
    converted = {renamed(name, _TO_OURS): t for name, t in tensors.items() if not _POINTS.match(name)}
    if is_edgetam_file(tensors):
        converted = from_edgetam(converted)
    labels = sorted(name for name in tensors if _POINTS.match(name))
    if len({tensors[name].shape for name in labels}) == 1:  # otherwise the tensor is missing, which is reported
        converted[POINT_EMBEDDINGS] = torch.cat([tensors[name] for name in labels])
    if (matrix := converted.get(SHARED_MATRIX)) is not None:
        converted[MATRIX_COPY] = matrix.clone()
    return converted


def meta_name(name: str) -> str:
    """The name in Meta's layout of a tensor of ``masklet.model``."""
    return renamed(edgetam_name(name), _TO_META)


def meta_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``convert_meta``: tensors of ``masklet.model`` in Meta's layout.

    They share memory with the input, except keys and values of an EdgeTAM's perceiver, which are one tensor there.
    """
    named = {name: t for name, t in tensors.items() if name not in (MATRIX_COPY, POINT_EMBEDDINGS)}
    converted = {renamed(name, _TO_META): t for name, t in to_edgetam(named).items()}
    for label, row in enumerate(tensors[POINT_EMBEDDINGS].split(1)):
        converted[f"sam_prompt_encoder.point_embeddings.{label}.weight"] = row
    return converted
