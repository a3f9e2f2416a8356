"""Files of weights <-> (config, tensors): the only package that knows the names of other formats.

A model on disk is a transformers folder: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``. Its
tensors have the names of the attributes in ``masklet.model``; only Meta's ``.pt`` files need a map of names (``meta``).
"""

from __future__ import annotations

import difflib
import json
import os
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

from masklet.atomic import replacing, replacing_all
from masklet.checkpoints.damage import what_is
from masklet.checkpoints.meta import read_meta_file
from masklet.checkpoints.preprocessor import (
    PreprocessorConfig,
    check_same,
    preprocessor_from_json,
    preprocessor_to_json,
)
from masklet.checkpoints.transformers import config_from_json, config_to_json
from masklet.config import Sam2Config
from masklet.errors import CheckpointError

StrPath = str | os.PathLike[str]

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
PROCESSOR, VIDEO_PREPROCESSOR = "processor_config.json", "video_preprocessor_config.json"
EMBEDDED = "nano"
_EMBEDDED_FOLDER = Path(__file__).parents[1] / "weights" / EMBEDDED


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name."""

    name: str
    source: str  # Hub repository, or "embedded"
    megabytes: int
    parameters: int


KNOWN_MODELS = (
    KnownModel(EMBEDDED, "embedded", 10, 4_755_506),
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
    """Reads a model of any source.

    Args:
        name_or_path: A known model's name, a Hub repository, a model folder, or one of Meta's ``.pt`` files.
        revision: Branch, tag or commit of a Hub repository.
        token: For a private Hub repository.

    Raises:
        CheckpointError: It cannot be found, is damaged, or is of another kind.
    """
    if is_meta_file(name_or_path):
        return read_meta_file(Path(name_or_path))
    config_path = locate(name_or_path, CONFIG, revision=revision, token=token)
    weights_path = locate(name_or_path, WEIGHTS, revision=revision, token=token)
    tensors = _read_safetensors(weights_path)
    has_memory = any(name.startswith("memory_") for name in tensors)
    return config_from_json(_read_json(config_path), has_memory=has_memory, where=config_path), tensors


def read_preprocessor(
    name_or_path: StrPath, *, revision: str | None = None, token: str | None = None
) -> PreprocessorConfig:
    """How a model's images are prepared.

    transformers 5 writes it into ``processor_config.json``, older versions into ``preprocessor_config.json``. As in
    transformers, the former has priority. Without both, the size is that of the network.

    Raises:
        CheckpointError: A file is malformed, or asks for something that this package does not support.
    """
    if is_meta_file(name_or_path):
        side = Sam2Config().image_size
        return PreprocessorConfig((side, side))

    folder = Path(name_or_path)

    def read_if_present(filename: str) -> dict[str, Any] | None:
        path = find(name_or_path, filename, revision=revision, token=token)
        return None if path is None else _read_json(path)

    processor = read_if_present(PROCESSOR) or {}

    def settings(section: str, filename: str) -> tuple[dict[str, Any] | None, Path]:
        """From a section of ``processor_config.json``, or else from a file of its own."""
        if isinstance(nested := processor.get(section), dict):
            return processor | nested, folder / PROCESSOR
        own = read_if_present(filename)
        return None if own is None else processor | own, folder / filename

    images, where = settings("image_processor", PREPROCESSOR)
    if images is None:
        config_path = locate(name_or_path, CONFIG, revision=revision, token=token)
        side = config_from_json(_read_json(config_path), has_memory=False, where=config_path).image_size
        return PreprocessorConfig((side, side))
    config = preprocessor_from_json(images, where)
    frames, where = settings("video_processor", VIDEO_PREPROCESSOR)
    if frames is not None:
        check_same(preprocessor_from_json(frames, where), config, where)
    return config


def write_preprocessor(folder: StrPath, config: PreprocessorConfig) -> None:
    """Writes how images are prepared into a model folder.

    Raises:
        CheckpointError: It cannot be written, or ``processor_config.json`` would override it.
    """
    folder = Path(folder)
    check_override(folder, config)
    text = json.dumps(preprocessor_to_json(config, processor_class="Sam2Processor"), indent=2) + "\n"
    try:
        with replacing(folder / PREPROCESSOR) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot save the processor to {folder}: {error}") from error


def check_override(folder: Path, config: PreprocessorConfig) -> None:
    """Raise a CheckpointError if the folder has a ``processor_config.json`` with other settings, which has priority."""
    path = folder / PROCESSOR
    content = _read_json(path) if path.is_file() else {}
    if isinstance(nested := content.get("image_processor"), dict) and preprocessor_from_json(nested, path) != config:
        raise CheckpointError(
            f"{path} has other settings for images and priority over {PREPROCESSOR}: remove it, or save to another "
            "folder"
        )


def is_meta_file(name_or_path: StrPath) -> bool:
    """Whether this is a file of weights, not a folder or a repository."""
    return os.fspath(name_or_path) != EMBEDDED and Path(name_or_path).is_file()


def locate(name_or_path: StrPath, filename: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Path of one file of a model: in the package, in a folder, or in the cache of the Hub (fetched if missing)."""
    name = os.fspath(name_or_path)
    if (folder := _folder_of(name)).is_dir():
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


def find(name_or_path: StrPath, filename: str, *, revision: str | None = None, token: str | None = None) -> Path | None:
    """As ``locate``, but None for a file that the model does not have."""
    folder = _folder_of(name_or_path)
    if folder.is_dir() and not (folder / filename).is_file():
        return None
    try:
        return locate(name_or_path, filename, revision=revision, token=token)
    except CheckpointError as error:
        cause = error.__cause__
        # Offline, nobody knows whether the repository has a file that is not in the cache. Most have the preprocessor.
        is_unknown = isinstance(cause, hub_errors.LocalEntryNotFoundError) and filename == PREPROCESSOR
        if isinstance(cause, hub_errors.EntryNotFoundError) and not is_unknown:
            return None
        raise


def _folder_of(name_or_path: StrPath) -> Path:
    return _EMBEDDED_FOLDER if os.fspath(name_or_path) == EMBEDDED else Path(name_or_path)


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
    except hub_errors.LocalEntryNotFoundError as error:  # also after a lost connection
        raise CheckpointError(
            f"{filename} of {repository} is not in the local cache and the Hub cannot be reached. To work offline, "
            f"fetch it once where there is a network (hf download {repository}) and set HF_HUB_OFFLINE=1, copy the "
            f"folder here and give its path, or use the embedded model, {EMBEDDED!r}"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repository} holds no {filename}: expected a transformers SAM 2 model") from error
    except (hub_errors.HFValidationError, OSError) as error:  # an invalid name; an error of the Hub or of the disk
        reason = " ".join(str(error).split())  # the Hub answers in several lines
        raise CheckpointError(f"cannot fetch {filename} of {repository!r}: {reason}") from error


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
        raise CheckpointError(f"{path}: {what_is(path)} ({error}). {_EXPECTED_WEIGHTS}") from error


_EXPECTED_WEIGHTS = "Expected a whole safetensors file; fetch or copy it again"


def write(folder: StrPath, config: Sam2Config, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None) -> None:
    """Writes a model folder. All files are complete before the first one replaces an older file.

    Raises:
        CheckpointError: It cannot be written; an older model in the folder is unchanged.
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
    preprocessor = PreprocessorConfig((config.image_size, config.image_size))
    check_override(folder, preprocessor)
    processor_class = "Sam2VideoProcessor" if config.has_memory else "Sam2Processor"
    texts = {
        name: json.dumps(content, indent=2) + "\n"
        for name, content in (
            (CONFIG, config_to_json(config)),
            (PREPROCESSOR, preprocessor_to_json(preprocessor, processor_class=processor_class)),
        )
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
