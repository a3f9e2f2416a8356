"""Files of weights <-> (config, tensors): the only place that knows foreign names.

A model on disk is a transformers folder: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``. Tensors
there are called as the attributes of ``masklet.model``, so only Meta's ``.pt`` files need a map of names.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masklet.config import (
    NUM_MULTIMASK_OUTPUTS,
    STRIDES,
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import CheckpointError, ConfigError
from masklet.files import replacing_all

StrPath = str | os.PathLike[str]

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
EMBEDDED = "nano"
_EMBEDDED_FOLDER = Path(__file__).parent / "weights" / EMBEDDED


@dataclass(frozen=True)
class KnownModel:
    """A model that can be asked for by a short name."""

    name: str
    source: str  # Hub repository, or "embedded"
    megabytes: int
    parameters: int


KNOWN_MODELS = (
    KnownModel(EMBEDDED, "embedded", 10, 4_900_000),
    KnownModel("sam2.1-hiera-tiny", "facebook/sam2.1-hiera-tiny", 156, 38_962_754),
    KnownModel("sam2.1-hiera-small", "facebook/sam2.1-hiera-small", 184, 46_060_610),
    KnownModel("sam2.1-hiera-base-plus", "facebook/sam2.1-hiera-base-plus", 323, 80_850_434),
    KnownModel("sam2.1-hiera-large", "facebook/sam2.1-hiera-large", 898, 224_446_898),
    KnownModel("sam2-hiera-tiny", "facebook/sam2-hiera-tiny", 156, 38_946_242),
    KnownModel("sam2-hiera-small", "facebook/sam2-hiera-small", 184, 46_044_098),
    KnownModel("sam2-hiera-base-plus", "facebook/sam2-hiera-base-plus", 323, 80_833_922),
    KnownModel("sam2-hiera-large", "facebook/sam2-hiera-large", 898, 224_430_386),
)


def read(
    name_or_path: StrPath, *, revision: str | None = None, token: str | None = None
) -> tuple[Sam2Config, dict[str, Tensor]]:
    """Read a model, whatever holds it.

    Args:
        name_or_path: A known model's name, a Hub repository, a model folder, or one of Meta's ``.pt`` files.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private Hub repository.

    Raises:
        CheckpointError: It cannot be found, is damaged, or is of another kind.
    """
    if is_meta_file(name_or_path):
        return _read_meta_file(Path(name_or_path))
    config_path = locate(name_or_path, CONFIG, revision=revision, token=token)
    weights_path = locate(name_or_path, WEIGHTS, revision=revision, token=token)
    tensors = _read_safetensors(weights_path)
    has_memory = any(name.startswith("memory_") for name in tensors)
    return config_from_json(_read_json(config_path), has_memory=has_memory, where=config_path), tensors


def read_input_hw(name_or_path: StrPath, *, revision: str | None = None, token: str | None = None) -> tuple[int, int]:
    """(height, width) that a model's pictures are resized to, from its preprocessor file."""
    if is_meta_file(name_or_path):
        side = Sam2Config().image_size
        return side, side
    if (folder := Path(name_or_path)).is_dir() and not (folder / PREPROCESSOR).is_file():
        # transformers saves a model alone without one.
        config_path = locate(folder, CONFIG)
        side = config_from_json(_read_json(config_path), has_memory=False, where=config_path).image_size
        return side, side
    path = locate(name_or_path, PREPROCESSOR, revision=revision, token=token)
    size = _read_json(path).get("size")
    if not isinstance(size, dict) or not all(isinstance(size.get(side), int) for side in ("height", "width")):
        raise CheckpointError(f'{path} has size {size!r}: expected {{"height": …, "width": …}} in pixels')
    return size["height"], size["width"]


def is_meta_file(name_or_path: StrPath) -> bool:
    """Whether this names a file of weights rather than a folder or a repository."""
    return os.fspath(name_or_path) != EMBEDDED and Path(name_or_path).is_file()


def locate(name_or_path: StrPath, filename: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Path of one file of a model: in the package, in a folder, or in the Hub's cache, fetched if need be."""
    name = os.fspath(name_or_path)
    if (folder := _EMBEDDED_FOLDER if name == EMBEDDED else Path(name)).is_dir():
        if not (folder / filename).is_file():
            there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise CheckpointError(f"{folder} holds no {filename} (it holds {there}): expected a model folder")
        return folder / filename
    if folder.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise CheckpointError(f"there is no file {name}; looked in {Path.cwd()}")
    repository = {model.name: model.source for model in KNOWN_MODELS}.get(name, name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or repository.startswith((".", "/")):
        known = [model.name for model in KNOWN_MODELS]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CheckpointError(
            f"no model {name!r}: {hint}Expected one of {', '.join(known)}, a Hub repository (owner/name), a model "
            "folder or a .pt file that exists"
        )
    return _fetch(repository, filename, revision, token)


def _fetch(repository: str, filename: str, revision: str | None, token: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, filename, revision=revision, token=token))
    except hub_errors.GatedRepoError as error:
        raise CheckpointError(f"{repository} is gated: ask for access on its page, then pass token=") from error
    except hub_errors.RepositoryNotFoundError as error:
        near = difflib.get_close_matches(repository, [m.source for m in KNOWN_MODELS], n=1)
        hint = f"; did you mean {near[0]}?" if near else "; if it is private, pass token="
        raise CheckpointError(
            f"there is no folder {repository!r} here, and the Hub has no such repository{hint}"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from error
    except hub_errors.LocalEntryNotFoundError as error:  # also what a lost connection ends in
        raise CheckpointError(
            f"{filename} of {repository} is not in the local cache and the Hub cannot be reached. To work offline, "
            f"fetch it once where there is a network (hf download {repository}) and set HF_HUB_OFFLINE=1, copy the "
            f"folder here and give its path, or use the embedded model, {EMBEDDED!r}"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repository} holds no {filename}: expected a transformers SAM 2 model") from error
    except (
        hub_errors.HFValidationError,
        OSError,
    ) as error:  # no name for a repository; the Hub's or the disk's trouble
        reason = " ".join(str(error).split())  # the Hub answers in several lines
        raise CheckpointError(f"cannot fetch {filename} of {repository!r}: {reason}") from error


# Reading and writing files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): expected a model's {path.name}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_what_is(path)} ({error}). {_EXPECTED_WEIGHTS}") from error


_EXPECTED_WEIGHTS = "Expected a whole safetensors file; fetch or copy it again"


def _what_is(path: Path) -> str:
    """A few words on a file that could not be read."""
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights: run git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "this is a web page, not weights"
    return f"{size} bytes that are cut off or of another kind"


def write(folder: StrPath, config: Sam2Config, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None) -> None:
    """Write a model folder. All files are complete beside the old ones before the first takes an old one's place.

    Raises:
        CheckpointError: It cannot be written; an older model in the folder is as it was.
    """
    folder = Path(folder)
    if taken := [name for name in (WEIGHTS, CONFIG, PREPROCESSOR) if (folder / name).is_dir()]:
        raise CheckpointError(
            f"cannot save the model to {folder}: its {taken[0]} is a folder. Expected a file, or nothing"
        )
    stored = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else None).contiguous().clone()
        for name, t in tensors.items()
    }
    texts = {
        name: json.dumps(content, indent=2) + "\n"
        for name, content in ((CONFIG, config_to_json(config)), (PREPROCESSOR, preprocessor_to_json(config)))
    }
    is_new = not folder.exists()
    try:
        with replacing_all(folder / WEIGHTS, *(folder / name for name in texts)) as (weights, *others):
            save_file(stored, weights, metadata={"format": "pt"})
            for file, text in zip(others, texts.values(), strict=True):
                file.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise CheckpointError(f"cannot save the model to {folder}: {error}; what was there is unchanged") from error


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are not exactly those of the network, saying which differ.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    reshaped = [
        f"{name} is {tuple(tensors[name].shape)} instead of {expected[name]}"
        for name in sorted(expected.keys() & tensors.keys())
        if tuple(tensors[name].shape) != expected[name]
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"the weights do not fit the network of the configuration: tensors {'; '.join(problems)}. "
            f"Expected the {len(expected)} tensors of a SAM 2 model"
        )


# transformers' config.json


def config_to_json(config: Sam2Config) -> dict[str, Any]:
    """Content of ``config.json``, as transformers names and nests it, constants included."""
    dim, side = config.hidden_size, config.image_size
    encoder = config.image_encoder
    dims = list(encoder.embed_dim_per_stage)
    act = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    video = {
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
    return {
        "architectures": ["Sam2VideoModel" if config.has_memory else "Sam2Model"],
        "model_type": "sam2_video" if config.has_memory else "sam2",
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
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
                "window_positional_embedding_background_size": list(
                    encoder.window_positional_embedding_background_size
                ),
                "blocks_per_stage": list(encoder.blocks_per_stage),
                "embed_dim_per_stage": dims,
                "num_attention_heads_per_stage": list(encoder.num_attention_heads_per_stage),
                "window_size_per_stage": list(encoder.window_size_per_stage),
                "global_attention_blocks": list(encoder.global_attention_blocks),
                "mlp_ratio": 4.0,
                **act,
            },
            "backbone_channel_list": dims[::-1],
            "backbone_feature_sizes": [[side // stride] * 2 for stride in STRIDES],
            "fpn_hidden_size": dim,
            "fpn_kernel_size": 1,
            "fpn_stride": 1,
            "fpn_padding": 0,
            "fpn_top_down_levels": [2, 3],
            "num_feature_levels": 3,
            **act,
        },
        "prompt_encoder_config": {
            "hidden_size": dim,
            "image_size": side,
            "patch_size": STRIDES[2],
            "mask_input_channels": config.prompt_encoder.mask_input_channels,
            "num_point_embeddings": 4,
            "scale": 1,
            **act,
        },
        "mask_decoder_config": {
            "hidden_size": dim,
            "hidden_act": "gelu",
            "mlp_dim": config.mask_decoder.mlp_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": config.mask_decoder.num_attention_heads,
            "attention_downsample_rate": 2,
            "num_multimask_outputs": NUM_MULTIMASK_OUTPUTS,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": dim,
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        **(video if config.has_memory else {}),
    }


NOT_COMPARED = {
    "architectures",
    "model_type",
    "image_size",
    "backbone_feature_sizes",
    "memory_attention_rope_feat_sizes",
}
"""Keys that name a class, or a size of input, which here follows the input at hand."""


def config_from_json(content: dict[str, Any], *, has_memory: bool, where: StrPath) -> Sam2Config:
    """Read a ``config.json``; one that asks for what this network never does is refused by name.

    Raises:
        CheckpointError: It describes another kind of model, or a variation that is not supported.
    """
    if (kind := content.get("model_type")) not in ("sam2", "sam2_video"):
        raise CheckpointError(f"{where} describes a model of type {kind!r}: expected sam2 or sam2_video")

    def section(source: dict[str, Any], name: str) -> dict[str, Any]:
        if not isinstance(inner := source.get(name, {}), dict):
            raise CheckpointError(f"{where} has {name} {inner!r}: expected a JSON object")
        return inner

    backbone = section(section(content, "vision_config"), "backbone_config")
    prompts, decoder = section(content, "prompt_encoder_config"), section(content, "mask_decoder_config")

    def given(source: dict[str, Any], **names: str) -> dict[str, Any]:
        """Fields of ours that the file gives; the rest keep their default, which is transformers' too."""
        return {ours: source[theirs] for ours, theirs in names.items() if theirs in source}

    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    try:
        config = Sam2Config(
            **given(prompts, **same("image_size", "hidden_size")),
            **given(content, **same("num_maskmem"), is_v2_1="enable_occlusion_spatial_embedding"),
            has_memory=has_memory,
            image_encoder=Sam2ImageEncoderConfig(
                **given(
                    backbone,
                    **same(
                        "hidden_size",
                        "num_attention_heads",
                        "blocks_per_stage",
                        "global_attention_blocks",
                        "window_size_per_stage",
                        "window_positional_embedding_background_size",
                    ),
                )
            ),
            prompt_encoder=Sam2PromptEncoderConfig(**given(prompts, **same("mask_input_channels"))),
            mask_decoder=Sam2MaskDecoderConfig(**given(decoder, **same("mlp_dim", "num_attention_heads"))),
            memory_attention=Sam2MemoryAttentionConfig(
                **given(
                    content,
                    num_layers="memory_attention_num_layers",
                    feed_forward_hidden_size="memory_attention_feed_forward_hidden_size",
                )
            ),
            memory_encoder=Sam2MemoryEncoderConfig(**given(content, output_channels="memory_encoder_output_channels")),
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    # What this network would write for itself must be what the file asks for.
    if differences := list(_differences(config_to_json(config), content)):
        raise CheckpointError(f"{where} asks for a SAM 2 that masklet does not know: {'; '.join(differences[:3])}")
    return config


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(ours.keys() & theirs.keys() - NOT_COMPARED):
        if isinstance(ours[key], dict) and isinstance(theirs[key], dict):
            found += _differences(ours[key], theirs[key], f"{prefix}{key}.")
        elif ours[key] != theirs[key]:
            found.append(f"{prefix}{key} is {theirs[key]!r}, expected {ours[key]!r}")
    return found


def preprocessor_to_json(config: Sam2Config) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``."""
    side = config.image_size
    return {
        "image_processor_type": "Sam2ImageProcessor",
        "processor_class": "Sam2VideoProcessor" if config.has_memory else "Sam2Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": side, "width": side},
        "mask_size": {"height": side // STRIDES[0], "width": side // STRIDES[0]},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


# Meta's .pt

META_SIZES = {
    # (channels, blocks per stage): (heads, global blocks, position grid, windows). Tensors tell no more than the key.
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
    # MLPs: Meta numbers their layers; the first and the last have names here.
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


# All that torch.load has been seen to raise on damaged files.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


def _read_meta_file(path: Path) -> tuple[Sam2Config, dict[str, Tensor]]:
    with path.open("rb") as file:
        is_safetensors = file.read(10)[8:] == b'{"'
    if is_safetensors or path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} holds weights alone: expected its folder, with {CONFIG}, or a .pt file of Meta's"
        )
    try:
        # Only tensors and plain containers: a pickle that would run code is refused.
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: {_what_is(path)}, or a pickle of more than tensors, which is not loaded since it could run code. "
            'Expected one of Meta\'s files, {"model": tensors}; save another one as that first'
        ) from error
    except _DAMAGE as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: {_what_is(path)} ({first_line}). Expected a whole .pt file of Meta's; fetch or copy it again"
        ) from error
    tensors = payload.get("model", payload) if isinstance(payload, dict) else None
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f'{path} holds no state dict: expected {{"model": {{name: tensor}}}}')
    return config_from_meta(tensors, where=path), convert_meta(tensors)


def config_from_meta(tensors: Mapping[str, Tensor], *, where: StrPath) -> Sam2Config:
    """Recognise which of the eight releases these tensors are laid out as.

    Raises:
        CheckpointError: None of them.
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
    if (size := META_SIZES.get((dim, blocks))) is None:
        raise CheckpointError(
            f"{where} has {dim} channels and {blocks} blocks per stage: expected tiny, small, base-plus or large "
            f"({', '.join(str(key) for key in META_SIZES)})"
        )
    heads, global_blocks, grid, windows = size
    return Sam2Config(
        is_v2_1="no_obj_embed_spatial" in tensors,
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
    """Tensors in Meta's layout, called as ours."""
    converted = {_our_name(name): t for name, t in tensors.items() if not _POINTS.match(name)}
    labels = sorted(name for name in tensors if _POINTS.match(name))
    if labels:
        converted["prompt_encoder.point_embed.weight"] = torch.cat([tensors[name] for name in labels])
    if (matrix := converted.get("shared_image_embedding.positional_embedding")) is not None:
        converted["prompt_encoder.shared_embedding.positional_embedding"] = matrix.clone()
    return converted
