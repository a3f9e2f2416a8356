"""Files of weights <-> (config, tensors): the only package that knows the names of other formats.

A model on disk is a transformers folder: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``. Its
tensors have the names of the attributes in ``masklet.model``; only Meta's ``.pt`` files need a map of names (``meta``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from masklet.atomic import replacing, replacing_all
from masklet.checkpoints.hub import (
    DEFAULT_HUB,
    EMBEDDED,
    KNOWN_MODELS,
    PREPROCESSOR,
    HubOptions,
    KnownModel,
    StrPath,
    find,
    locate,
    meta_file,
    push_folder,
    side_of_meta_file,
)
from masklet.checkpoints.meta import read_meta_file
from masklet.checkpoints.preprocessor import (
    PreprocessorConfig,
    check_same,
    preprocessor_from_json,
    preprocessor_to_json,
    video_preprocessor_to_json,
)
from masklet.checkpoints.transformers import config_from_json, config_to_json
from masklet.checkpoints.weights import (
    SAFETENSORS,
    read_weights,
    split_weights,
    stale_weights,
    write_weights,
)
from masklet.config import Sam2Config
from masklet.errors import CheckpointError

__all__ = [
    "CONFIG",
    "EMBEDDED",
    "KNOWN_MODELS",
    "PREPROCESSOR",
    "PROCESSOR",
    "VIDEO_PREPROCESSOR",
    "WEIGHTS",
    "HubOptions",
    "KnownModel",
    "check_tensors",
    "find",
    "locate",
    "meta_file",
    "push_folder",
    "read",
    "read_config",
    "read_file",
    "read_json",
    "read_preprocessor",
    "read_processor",
    "read_video_processor",
    "write",
    "write_preprocessor",
    "write_text",
]

CONFIG = "config.json"
WEIGHTS = SAFETENSORS
PROCESSOR = "processor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"


def read(
    name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB, *, use_safetensors: bool | None = None
) -> tuple[Sam2Config, dict[str, Tensor]]:
    """Reads a model of any source.

    Args:
        name_or_path: A known model's name, a Hub repository, a model folder, or one of Meta's ``.pt`` files.
        hub: How its files are fetched.
        use_safetensors: See ``read_weights``.

    Raises:
        CheckpointError: It cannot be found, is damaged, or is of another kind.
    """
    if (path := meta_file(name_or_path, hub)) is not None:
        return read_file(path)
    config_path = locate(name_or_path, CONFIG, hub)
    tensors = read_weights(name_or_path, hub, use_safetensors=use_safetensors)
    has_memory = any(name.startswith("memory_") for name in tensors)
    return config_from_json(read_json(config_path), has_memory=has_memory, where=config_path), tensors


def read_file(path: Path) -> tuple[Sam2Config, dict[str, Tensor]]:
    """Reads a ``.pt`` file in Meta's layout.

    Such files do not store the size of the input. It is 1,024 pixels, or 512 where the name is that of a MedSAM2.

    Raises:
        CheckpointError: As ``read``.
    """
    config, tensors = read_meta_file(path)
    return replace(config, image_size=side_of_meta_file(path) or config.image_size), tensors


def read_config(name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB) -> dict[str, Any]:
    """The content of a model's ``config.json``; of Meta's files, what it would be.

    Raises:
        CheckpointError: It cannot be found, or is not JSON.
    """
    if (path := meta_file(name_or_path, hub)) is not None:
        return config_to_json(read_file(path)[0])
    return read_json(locate(name_or_path, CONFIG, hub))


def read_preprocessor(name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB) -> PreprocessorConfig:
    """How a model's images are prepared.

    transformers 5 writes it into ``processor_config.json``, older versions into ``preprocessor_config.json``. As in
    transformers, the former has priority. Without both, the size is that of the network.

    Raises:
        CheckpointError: A file is malformed, or asks for something that this package does not support.
    """
    if (file := meta_file(name_or_path, hub)) is not None:
        side = side_of_meta_file(file) or Sam2Config().image_size
        return PreprocessorConfig((side, side))

    path = find(name_or_path, PROCESSOR, hub)
    processor = {} if path is None else read_json(path)
    images, frames = (_preprocessor_settings(name_or_path, hub, processor, *place) for place in (_IMAGES, _FRAMES))
    if images is None:
        side = _input_side(name_or_path, hub)
        return PreprocessorConfig((side, side))
    config = preprocessor_from_json(*images)
    if frames is not None:
        check_same(preprocessor_from_json(*frames), config, frames[1])
    return config


def read_processor(name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of an image processor as they are in a model's files, and those of the processor around it.

    Raises:
        CheckpointError: A file is malformed.
    """
    if (file := meta_file(name_or_path, hub)) is not None:
        return {"size": side_of_meta_file(file) or Sam2Config().image_size}, {}
    path = find(name_or_path, PROCESSOR, hub)
    processor = {} if path is None else read_json(path)
    if isinstance(images := processor.get(_IMAGES[0]), dict):
        return images, processor
    path = find(name_or_path, PREPROCESSOR, hub)
    return {"size": _input_side(name_or_path, hub)} if path is None else read_json(path), processor


def read_video_processor(name_or_path: StrPath, hub: HubOptions = DEFAULT_HUB) -> dict[str, Any]:
    """The settings of a video processor as they are in a model's files; without them, those of its image processor.

    Raises:
        CheckpointError: A file is malformed.
    """
    images, processor = read_processor(name_or_path, hub)
    if isinstance(frames := processor.get(_FRAMES[0]), dict):
        return frames
    path = find(name_or_path, VIDEO_PREPROCESSOR, hub) if meta_file(name_or_path, hub) is None else None
    return images if path is None else read_json(path)


_IMAGES, _FRAMES = ("image_processor", PREPROCESSOR), ("video_processor", VIDEO_PREPROCESSOR)
"""Sections of ``processor_config.json``, and the files that hold the same where there is no such section."""


def _preprocessor_settings(
    name_or_path: StrPath, hub: HubOptions, processor: dict[str, Any], section: str, filename: str
) -> tuple[dict[str, Any], Path] | None:
    """Settings from a section of ``processor_config.json``, or else from a file of their own, and where they were."""
    folder = Path(name_or_path)
    if isinstance(nested := processor.get(section), dict):
        return processor | nested, folder / PROCESSOR
    own = find(name_or_path, filename, hub)
    return None if own is None else (processor | read_json(own), folder / filename)


def _input_side(name_or_path: StrPath, hub: HubOptions) -> int:
    """The side of a network's input."""
    path = locate(name_or_path, CONFIG, hub)
    return config_from_json(read_json(path), has_memory=False, where=path).image_size


def write_preprocessor(folder: StrPath, config: PreprocessorConfig) -> None:
    """Writes how images are prepared into a model folder.

    Raises:
        CheckpointError: It cannot be written, or ``processor_config.json`` would override it.
    """
    folder = Path(folder)
    check_override(folder, config)
    is_video = (folder / VIDEO_PREPROCESSOR).exists()
    contents = _preprocessor_contents(config, is_video=is_video)
    try:
        with replacing_all(*(folder / name for name in contents)) as unfinished:
            for file, content in zip(unfinished, contents.values(), strict=True):
                file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot save the processor to {folder}: {error}") from error


def check_override(folder: Path, config: PreprocessorConfig) -> None:
    """Raise a CheckpointError if the folder has a ``processor_config.json`` with other settings, which has priority."""
    path = folder / PROCESSOR
    content = read_json(path) if path.is_file() else {}
    if isinstance(nested := content.get("image_processor"), dict) and preprocessor_from_json(nested, path) != config:
        raise CheckpointError(
            f"{path} has other settings for images and priority over {PREPROCESSOR}: remove it, or save to another "
            "folder"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: It holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): expected a model's {path.name}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def write(
    folder: StrPath,
    config: Sam2Config,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    content: Mapping[str, Any] | None = None,
    safe: bool = True,
    max_shard_size: int | str | None = None,
    replaces_preprocessor: bool = True,
) -> list[str]:
    """Writes a model folder. All files are complete before the first one replaces an older file.

    Args:
        folder: Created if missing.
        config: Configuration of the network.
        tensors: Its weights.
        dtype: Type of the stored weights; unchanged if None.
        content: Content of ``config.json``; None for that of ``config``.
        safe: Whether the weights are written as safetensors, or as ``pytorch_model.bin``.
        max_shard_size: See ``split_weights``.
        replaces_preprocessor: Whether settings of an image processor in the folder are replaced by the usual ones.

    Returns:
        The names of the files.

    Raises:
        CheckpointError: It cannot be written; an older model in the folder is unchanged.
    """
    folder = Path(folder)
    stored = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else None).contiguous().clone()
        for name, t in tensors.items()
    }
    files, index = split_weights(stored, max_shard_size=max_shard_size, safe=safe)
    contents: dict[str, Mapping[str, Any]] = {CONFIG: config_to_json(config) if content is None else content}
    if index is not None:
        contents[f"{WEIGHTS if safe else 'pytorch_model.bin'}.index.json"] = index
    contents |= _preprocessors(folder, config, replaces=replaces_preprocessor)
    if taken := [name for name in [*files, *contents] if (folder / name).is_dir()]:
        raise CheckpointError(
            f"cannot save the model to {folder}: its {taken[0]} is a folder. Expected a file, or nothing"
        )
    is_new = not folder.exists()
    try:
        with replacing_all(*(folder / name for name in [*files, *contents])) as unfinished:
            for file, shard in zip(unfinished, files.values(), strict=False):
                write_weights(file, shard, safe=safe)
            for file, text in zip(unfinished[len(files) :], contents.values(), strict=True):
                file.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        for file in stale_weights(folder, kept={**files, **contents}):
            file.unlink()
    except (OSError, SafetensorError) as error:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise CheckpointError(f"cannot save the model to {folder}: {error}; what was there is unchanged") from error
    return [*files, *contents]


def _preprocessors(folder: Path, config: Sam2Config, *, replaces: bool) -> dict[str, dict[str, Any]]:
    """Contents of the files that say how images and frames are prepared."""
    if not replaces and any((folder / name).exists() for name in (PREPROCESSOR, PROCESSOR)):
        return {}
    preprocessor = PreprocessorConfig((config.image_size, config.image_size))
    check_override(folder, preprocessor)
    return _preprocessor_contents(preprocessor, is_video=config.has_memory)


def _preprocessor_contents(config: PreprocessorConfig, *, is_video: bool) -> dict[str, dict[str, Any]]:
    if not is_video:
        return {PREPROCESSOR: preprocessor_to_json(config, processor_class="Sam2Processor")}
    # transformers' processor of videos needs both files, and its class named in both.
    images = preprocessor_to_json(config, processor_class="Sam2VideoProcessor")
    return {PREPROCESSOR: images, VIDEO_PREPROCESSOR: video_preprocessor_to_json(config)}


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that weights are exactly those of the network.

    Raises:
        CheckpointError: Tensors are missing, unexpected, or of another shape; the error names them.
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


BATCH_COUNT = ".num_batches_tracked"
"""End of the names of the tensors in which batch normalisation counts, which are whole numbers."""


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError unless all weights are finite floating-point numbers."""
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(BATCH_COUNT)}
    if damaged := sorted(name for name, tensor in weights.items() if not is_finite(tensor)):
        raise CheckpointError(
            f"{len(damaged)} tensors hold NaN or infinity, or no floating-point numbers: {', '.join(damaged[:3])}. The "
            "file is damaged, or training diverged: use another copy, or an earlier checkpoint"
        )


def is_finite(weights: Tensor) -> bool:
    """Whether a tensor holds finite floating-point numbers."""
    if not weights.is_floating_point() or weights.layout is not torch.strided:
        return False
    return bool(weights.float().sum().isfinite())  # reads the weights once, and writes nothing
